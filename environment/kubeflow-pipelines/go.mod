// The parts of Kubeflow Pipelines 2.14.3 that are built from published Go modules.
// They have no entry in Go's checksum database: go.sum holds their hashes.
module kubeflow-pipelines

go 1.26.0

require (
	github.com/kubeflow/pipelines v0.0.0-20250902140602-fc3214d4b4d3
	github.com/kubeflow/pipelines/api v0.0.0-20250102152816-873e9dedd766
	github.com/kubeflow/pipelines/kubernetes_platform v0.0.0-20240725205754-d911c8b73b49
)
