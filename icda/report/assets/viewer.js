"use strict";
// The viewer: two layers of an image on both sides of a divider. Label maps come as planes of ids that are inflated
// here, not as pictures, so that no colour management can change an id. Nothing here runs before report.js calls it.

const ERROR_COLOR = [255, 0, 200];
// Dark to bright in brightness too, so that it can be read without colours.
const CONFIDENCE_STOPS = [[22, 10, 60], [98, 28, 122], [190, 58, 96], [243, 130, 56], [250, 238, 140]];

/** The bytes of a text in base64. */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

/** A plane of width x height numbers: inflated, and each row added to the one above. */
async function planeOf(text, width, height) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const plane = new Uint8Array(await new Response(stream).arrayBuffer());
  if (plane.length !== width * height) throw new Error(`a plane has ${plane.length} bytes, not ${width * height}`);
  for (let i = width; i < plane.length; i += 1) plane[i] += plane[i - width];
  return plane;
}

/** A JPEG in base64, decoded. */
async function pictureOf(text) {
  const picture = new Image();
  picture.src = `data:image/jpeg;base64,${text}`;
  await picture.decode();
  return picture;
}

/** The layers of an image, decoded; only those that are looked at ever are. */
async function decodeLayers(block) {
  const raw = JSON.parse(block.textContent);
  const planes = ["truth", "prediction", "confidence"].map((key) => planeOf(raw[key], raw.width, raw.height));
  const [picture, truth, prediction, confidence] = await Promise.all([pictureOf(raw.picture), ...planes]);
  return { ...raw, picture, truth, prediction, confidence };
}

/** The colour of a confidence in percent. */
function confidenceColor(percent) {
  const place = (Math.min(percent, 100) / 100) * (CONFIDENCE_STOPS.length - 1);
  const below = Math.min(Math.floor(place), CONFIDENCE_STOPS.length - 2);
  const weight = place - below;
  return CONFIDENCE_STOPS[below].map((value, k) =>
    Math.round(value + weight * (CONFIDENCE_STOPS[below + 1][k] - value)));
}

/** A canvas of RGBA pixels: paint(i) gives the colour of pixel i, or null where nothing covers the image. */
function paintedCanvas(width, height, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    const color = paint(i);
    if (color) {
      pixels.data[4 * i] = color[0];
      pixels.data[4 * i + 1] = color[1];
      pixels.data[4 * i + 2] = color[2];
      pixels.data[4 * i + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** What a layer paints at each pixel. `hidden` holds the classes that are switched off. */
function painter(kind, layers, data, hidden) {
  const { truth, prediction, confidence } = layers;
  const shown = data.names.map((_, id) => !hidden.has(id));
  if (kind === "confidence") {
    const colors = Array.from({ length: 101 }, (_, percent) => confidenceColor(percent));
    return (i) => colors[confidence[i]];
  }
  if (kind === "error") {
    return (i) => {
      if (truth[i] === data.ignore) return [0, 0, 0];
      const wrong = truth[i] !== prediction[i] && (shown[truth[i]] || shown[prediction[i]]);
      return wrong ? ERROR_COLOR : null;
    };
  }
  const ids = kind === "truth" ? truth : prediction;
  return (i) => (shown[ids[i]] ? data.palette[ids[i]] : null);
}

/** One viewer. */
class Viewer {
  constructor(box, place, data) {
    this.box = box;
    this.place = place;
    this.data = data;
    this.hidden = new Set();
    this.layers = null;
    this.index = null;
    this.overlays = new Map();
    this.canvas = box.querySelector("canvas.view");
    this.wipe = box.querySelector("input.wipe");
    this.opacity = box.querySelector("input.opacity");
    this.brighten = box.querySelector("input.brighten");
    this.listen();
    this.paintScale();
  }

  /** Connects the controls. */
  listen() {
    const draw = () => this.draw();
    for (const input of [this.wipe, this.opacity, this.brighten]) input.addEventListener("input", draw);
    for (const radio of this.box.querySelectorAll(".side input")) radio.addEventListener("change", draw);
    for (const pick of this.box.querySelectorAll(".pick")) {
      pick.addEventListener("click", () => this.open(Number(pick.dataset.image)));
    }
    this.box.querySelector(".all").addEventListener("click", () => this.toggleAll(true));
    this.box.querySelector(".none").addEventListener("click", () => this.toggleAll(false));
    const frame = this.box.querySelector(".frame");
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      this.drag(event);
    });
    frame.addEventListener("pointermove", (event) => {
      if (event.buttons) this.drag(event);
      this.readPixel(event);
    });
  }

  /** The image's place, name and figures stand in the table of all images; its layers in a block of their own. */
  async open(index) {
    const block = document.getElementById(`layers-${this.place}-${index}`);
    this.index = index;
    for (const pick of this.box.querySelectorAll(".pick")) {
      pick.setAttribute("aria-pressed", String(Number(pick.dataset.image) === index));
    }
    let layers = null;
    try {
      layers = await decodeLayers(block);
    } catch (error) {
      this.box.querySelector(".pixel").textContent = `This browser cannot show the layers: ${error.message}`;
      return;
    }
    if (this.index !== index) return; // another was opened in the meantime
    this.layers = layers;
    this.overlays.clear();
    this.canvas.width = layers.width;
    this.canvas.height = layers.height;
    this.canvas.classList.toggle("coarse", layers.width < 400);
    // A tall picture is no taller than most of the window.
    this.canvas.parentElement.style.maxWidth = `${(80 * layers.width) / layers.height}vh`;
    this.nameImage(index);
    this.fillLegend();
    this.draw();
    this.box.dataset.shown = String(index);
  }

  /** Writes the image's name and its scores. */
  nameImage(index) {
    const pick = this.box.querySelector(`.pick[data-image="${index}"]`);
    this.box.querySelector(".image-name").textContent = pick.title;
    this.box.querySelector(".image-facts").textContent = `mIoU of this image ${pick.dataset.miou} %`;
  }

  /** A row of the legend for every class in the image's label or prediction. */
  fillLegend() {
    const body = this.box.querySelector(".legend tbody");
    body.replaceChildren();
    this.data.names.forEach((name, id) => {
      const { truthPixels, predictedPixels, iou } = this.layers;
      if (!truthPixels[id] && !predictedPixels[id]) return;
      const row = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.append(this.legendButton(name, id));
      row.append(head);
      const score = iou[id] === null ? "-" : (100 * iou[id]).toFixed(2);
      for (const words of [grouped(truthPixels[id]), grouped(predictedPixels[id]), score]) {
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = words;
      }
    });
  }

  /** The button that switches a class on and off. */
  legendButton(name, id) {
    const button = document.createElement("button");
    const patch = document.createElement("span");
    const label = document.createElement("bdi");
    button.type = "button";
    button.dataset.class = String(id);
    button.setAttribute("aria-pressed", String(!this.hidden.has(id)));
    patch.className = "swatch";
    patch.style.background = `rgb(${this.data.palette[id].join(",")})`;
    label.textContent = name;
    button.append(patch, label);
    button.addEventListener("click", () => this.toggle(id, this.hidden.has(id)));
    return button;
  }

  /** Switches one class. */
  toggle(id, on) {
    if (on) this.hidden.delete(id);
    else this.hidden.add(id);
    this.toggled();
  }

  /** Switches all classes. */
  toggleAll(on) {
    this.hidden = new Set(on ? [] : this.data.names.keys());
    this.toggled();
  }

  /** Shows which classes are on. */
  toggled() {
    for (const button of this.box.querySelectorAll(".legend button")) {
      button.setAttribute("aria-pressed", String(!this.hidden.has(Number(button.dataset.class))));
    }
    this.overlays.clear();
    if (this.layers) this.draw();
  }

  /** The painted pixels of a layer; kept until a class is switched. */
  overlay(kind) {
    if (!this.overlays.has(kind)) {
      const paint = painter(kind, this.layers, this.data, this.hidden);
      this.overlays.set(kind, paintedCanvas(this.layers.width, this.layers.height, paint));
    }
    return this.overlays.get(kind);
  }

  /** Draws both sides. */
  draw() {
    if (!this.layers) return;
    const middle = Math.round((this.canvas.width * Number(this.wipe.value)) / 100);
    this.drawSide("left", 0, middle);
    this.drawSide("right", middle, this.canvas.width);
    this.box.querySelector(".divider").style.left = `${this.wipe.value}%`;
  }

  /** Draws the layer of one side between two columns. */
  drawSide(side, from, to) {
    if (to <= from) return;
    const kind = this.box.querySelector(`.side[data-side="${side}"] input:checked`).value;
    const { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, height);
    context.clip();
    context.drawImage(this.layers.picture, 0, 0, width, height);
    if (this.brighten.checked) this.screen(context);
    if (kind === "error") { // the image in grey
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
    }
    context.globalAlpha = Number(this.opacity.value) / 100;
    if (kind !== "image") context.drawImage(this.overlay(kind), 0, 0);
    context.restore();
  }

  /** Makes what is dark bright: 1 - (1 - value)^4 of every channel. */
  screen(context) {
    const { width, height } = this.canvas;
    const copy = document.createElement("canvas");
    copy.width = width;
    copy.height = height;
    const own = copy.getContext("2d");
    own.drawImage(this.layers.picture, 0, 0, width, height);
    own.globalCompositeOperation = "screen";
    own.drawImage(this.layers.picture, 0, 0, width, height);
    context.globalCompositeOperation = "screen";
    context.drawImage(this.layers.picture, 0, 0, width, height);
    context.drawImage(copy, 0, 0);
    context.globalCompositeOperation = "source-over";
  }

  /** Where in the frame the pointer is, 0..1 across and down. */
  place01(event) {
    const area = this.canvas.getBoundingClientRect();
    const clamp = (value) => Math.min(Math.max(value, 0), 1);
    return [clamp((event.clientX - area.left) / area.width), clamp((event.clientY - area.top) / area.height)];
  }

  /** Moves the divider to the pointer. */
  drag(event) {
    this.wipe.value = String(Math.round(100 * this.place01(event)[0]));
    this.draw();
  }

  /** Says what stands at the pixel under the pointer. */
  readPixel(event) {
    if (!this.layers) return;
    const { width, height, truth, prediction, confidence } = this.layers;
    const [across, down] = this.place01(event);
    const x = Math.min(Math.floor(across * width), width - 1);
    const y = Math.min(Math.floor(down * height), height - 1);
    const i = y * width + x;
    const label = truth[i] === this.data.ignore ? "no label" : `labelled ${this.data.names[truth[i]]}`;
    this.box.querySelector(".pixel").textContent =
      `${label}, predicted ${this.data.names[prediction[i]]}, confidence ${confidence[i]} %`;
  }

  /** The colours of confidences beside their numbers. */
  paintScale() {
    const context = this.box.querySelector(".scale canvas").getContext("2d");
    for (let percent = 0; percent <= 100; percent += 1) {
      context.fillStyle = `rgb(${confidenceColor(percent).join(",")})`;
      context.fillRect(percent, 0, 1, 1);
    }
  }
}
