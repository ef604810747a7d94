#!/usr/bin/env bash
# The node: what runs in the cluster's namespaces, as their process 1. Started by
# cluster.py with the folders of the state and the programs, weed and config/; killing it
# ends all.
#
# What lies in the state's folder is seen here as /run/cluster, so that the files in
# config/ hold fixed paths. Every program is started again a second after it ends.
set -eu
address=10.245.0.1 ports="6443 5000 8333"

if [ "$1" != inside ]; then  # still in the machine's network
    mount --make-rprivate /
    mount -t proc proc /proc
    mount --make-rshared /  # for the pods' mounts; nothing goes back to the machine
    hostname node
    unset {http,https,all}_proxy {HTTP,HTTPS,ALL}_PROXY  # what it asks is in here
    cd "$1/sockets"  # a Unix socket's path must be short
    for port in $ports; do  # it leads from one network into the other
        socat "TCP-LISTEN:$port,bind=$address,fork,reuseaddr,nodelay" \
            "UNIX-CONNECT:$port" </dev/null &
    done
    exec unshare --net bash "$0" inside "$@"
fi

state=$2 programs=$3 weed=$4 config=$5
ip link set lo up
ip address add $address/32 dev lo
ip route add 10.96.0.0/16 dev lo        # services, for calls of the API server's own
ip route add unreachable default        # and no way out
mount -t tmpfs tmpfs /run
mkdir -p /run/{lock,containerd,cni,cluster,programs,sys}
touch /run/weed
mount --bind "$state" /run/cluster
mount --bind "$programs" /run/programs
mount --bind "$weed" /run/weed
mount --bind "$config" /run/cluster/config
# Nothing that a program writes elsewhere reaches the machine's disk.
for folder in /tmp /var/lib /var/log; do mount -t tmpfs tmpfs $folder; done
mkdir -p /var/lib/kubelet /var/log/pods
mount --bind /run/cluster/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
mount --bind /run/cluster/pods /var/log/pods
mount --bind /run/cluster/config/hosts /etc/hosts
mount --bind /run/cluster/config/resolv.conf /etc/resolv.conf
export HOME=/run
# The kubelet sets these of the whole machine: let it write into files instead.
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    [ -e /proc/sys/$name ] || continue
    cat /proc/sys/$name >"/run/sys/${name//\//-}"
    mount --bind "/run/sys/${name//\//-}" /proc/sys/$name
done
echo 1 >/proc/sys/net/ipv4/ip_forward
for port in $ports; do
    socat "UNIX-LISTEN:/run/cluster/sockets/$port,fork" \
        "TCP:$address:$port,nodelay" </dev/null &
done

cd /run/cluster
keep() {  # keep NAME COMMAND…: run it, again whenever it ends; its words go to logs/NAME
    while true; do
        "${@:2}" >>"logs/$1.log" 2>&1 </dev/null || true
        echo "$1 has ended; it is started again in a second" >>logs/node.log
        sleep 1
    done &
}
ready() { [ "$(PATH=/run/programs:$PATH kubectl --kubeconfig=home/.kube/config get --raw /readyz 2>/dev/null)" = ok ]; }
run=/run/programs pki=pki etcd=http://127.0.0.1:2379 peer=http://127.0.0.1:2380
keep etcd $run/etcd --data-dir=etcd --unsafe-no-fsync --log-level=warn \
    --listen-client-urls=$etcd --advertise-client-urls=$etcd --listen-peer-urls=$peer \
    --initial-advertise-peer-urls=$peer --initial-cluster=default=$peer
keep kube-apiserver $run/kube-apiserver --etcd-servers=$etcd --bind-address=$address \
    --advertise-address=$address --allow-privileged --authorization-mode=Node,RBAC \
    --anonymous-auth=false --client-ca-file=$pki/ca.crt --enable-aggregator-routing \
    --tls-cert-file=$pki/api.crt --tls-private-key-file=$pki/api.key \
    --kubelet-client-certificate=$pki/admin.crt --kubelet-client-key=$pki/admin.key \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file=$pki/sa.key --service-account-signing-key-file=$pki/sa.key \
    --service-cluster-ip-range=10.96.0.0/16
keep containerd containerd --config=config/containerd.toml
keep registry docker-registry serve config/registry.yaml
keep s3 /run/weed -logtostderr server -dir=/run/cluster/s3 -ip=$address -ip.bind=$address \
    -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=1000 \
    -s3 -s3.config=/run/cluster/s3.json -s3.port=8333 -s3.port.iceberg=0 -s3.port.lance=0
until ready; do sleep 0.2; done
keep kube-controller-manager $run/kube-controller-manager --kubeconfig=home/.kube/config \
    --leader-elect=false --use-service-account-credentials --root-ca-file=$pki/ca.crt \
    --service-account-private-key-file=$pki/sa.key \
    --cluster-signing-cert-file=$pki/ca.crt --cluster-signing-key-file=$pki/ca.key \
    --flex-volume-plugin-dir=/run/volume-plugins
keep kube-scheduler $run/kube-scheduler --kubeconfig=home/.kube/config --leader-elect=false
keep kubelet $run/kubelet --kubeconfig=home/.kube/config --config=config/kubelet.yaml \
    --hostname-override=node --node-ip=$address
keep kube-proxy $run/kube-proxy --kubeconfig=home/.kube/config --hostname-override=node \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0
wait
