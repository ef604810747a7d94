// Each picture leads to itself, alone and as large as it was taken.
document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll("article img")) {
    if (image.closest("a")) continue;
    const link = document.createElement("a");
    Object.assign(link, { href: image.src, target: "_blank", title: "open large" });
    image.replaceWith(link);
    link.append(image);
  }
});
