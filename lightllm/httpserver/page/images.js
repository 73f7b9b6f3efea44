/** Images that go with the next message: chosen, pasted or dropped. */

import { byId, h, icon, say } from "./dom.js";

const MAX_SIDE = 2048;
/** Larger files are made smaller, so that a conversation stays within what a request may have. */
const MAX_BYTES = 3 << 20;

export class Attachments {
  constructor() {
    this._images = [];
    this._list = byId("attached");
    this._allowed = false;
    const files = byId("files"),
      composer = byId("composer");
    byId("attach").addEventListener("click", () => files.click());
    files.addEventListener("change", async () => {
      await this.add([...files.files]);
      files.value = "";
    });
    composer.addEventListener("paste", (event) => this._take(event, event.clipboardData));
    composer.addEventListener("drop", (event) => this._take(event, event.dataTransfer));
    composer.addEventListener("dragover", (event) => {
      if (this._allowed && [...event.dataTransfer.types].includes("Files")) event.preventDefault();
    });
  }

  /** Once the server has said that its model sees. */
  allow() {
    this._allowed = true;
    byId("attach").hidden = false;
  }

  get images() {
    return [...this._images];
  }

  set(images) {
    this._images = [...images];
    this._draw();
  }

  async add(files) {
    for (const file of files.filter((each) => each.type.startsWith("image/"))) {
      try {
        this._images.push({ url: await dataUrl(file), name: file.name || "image" });
      } catch {
        say(`${file.name} cannot be read as an image`);
      }
    }
    this._draw();
  }

  _take(event, data) {
    if (!this._allowed || !data?.files.length) return;
    event.preventDefault();
    this.add([...data.files]);
  }

  _draw() {
    this._list.hidden = this._images.length === 0;
    this._list.replaceChildren(
      ...this._images.map((image, number) =>
        h(
          "li",
          {},
          h("img", { src: image.url, alt: image.name }),
          h(
            "button",
            {
              type: "button",
              class: "remove",
              "aria-label": `Remove ${image.name}`,
              onclick: () => {
                this._images.splice(number, 1);
                this._draw();
                byId("draft").focus();
              },
            },
            icon("close"),
          ),
        ),
      ),
    );
  }
}

async function dataUrl(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MAX_BYTES) return asDataUrl(file);
  const canvas = h("canvas", {
    width: Math.round(bitmap.width * scale),
    height: Math.round(bitmap.height * scale),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
