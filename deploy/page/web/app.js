/** The page: a form in, a picture out. `window.flashDeploy.generate` draws without the form, for tests and measurements. */

import { HttpFiles } from "./files.js";
import { checkDrawable, devices, downloadBytes } from "./manifest.js";
import { drawsUpon } from "./upon.js";

const LARGEST_SEED = 2 ** 32 - 1;
const STAGES = {
  encode: "Looking at the picture",
  text: "Reading the prompt",
  denoise: "Drawing",
  decode: "Developing the picture",
  load: "Loading",
};

/** @template {HTMLElement} T @param {string} id @returns {T} */
const element = (id) => /** @type {T} */ (document.getElementById(id));
const form = /** @type {HTMLFormElement} */ (element("form"));
const prompt = /** @type {HTMLTextAreaElement} */ (element("prompt"));
const seed = /** @type {HTMLInputElement} */ (element("seed"));
const guidance = /** @type {HTMLInputElement} */ (element("guidance"));
const negative = /** @type {HTMLTextAreaElement} */ (element("negative"));
const image = /** @type {HTMLInputElement} */ (element("image"));
const strength = /** @type {HTMLInputElement} */ (element("strength"));
const device = /** @type {HTMLSelectElement} */ (element("device"));
const draw = /** @type {HTMLButtonElement} */ (element("draw"));
const stop = /** @type {HTMLButtonElement} */ (element("stop"));
const save = /** @type {HTMLAnchorElement} */ (element("save"));
const progress = /** @type {HTMLProgressElement} */ (element("progress"));
const canvas = /** @type {HTMLCanvasElement} */ (element("canvas"));

/** Draws in a worker, which a stop or other options end and the next request starts anew. */
class Drawer {
  constructor() {
    /** @type {Worker | null} */
    this._worker = null;
    this._options = "";
    /** @type {Map<number, {resolve: Function, reject: Function, onProgress: Function}>} */
    this._waiting = new Map();
    this._count = 0;
  }

  /**
   * @param {object} request what `Pipeline.generate` takes, the prompt with it
   * @param {object} options what `Pipeline.open` takes
   * @param {Function} [onProgress]
   * @returns {Promise<import("./pipeline.js").Picture>}
   */
  generate(request, options, onProgress = () => {}) {
    if (this._options !== JSON.stringify(options)) {
      this.stop("Other options were asked for.");
      this._options = JSON.stringify(options);
    }
    this._worker ??= this._start();
    const id = this._count++;
    this._worker.postMessage({ id, request, options });
    return new Promise((resolve, reject) => this._waiting.set(id, { resolve, reject, onProgress }));
  }

  /** End the work under way; whoever waits for it is told. */
  stop(reason = "Stopped.") {
    this._worker?.terminate();
    this._worker = null;
    this._waiting.forEach(({ reject }) => reject(new Error(reason)));
    this._waiting.clear();
  }

  _start() {
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => this._answer(data);
    worker.onerror = (event) => this.stop(event.message || "The page's worker could not be started.");
    return worker;
  }

  /** @param {any} answer */
  _answer({ id, progress: parts, picture, error }) {
    const { resolve, reject, onProgress } = /** @type {any} */ (this._waiting.get(id));
    if (parts) {
      onProgress(...parts);
      return;
    }
    this._waiting.delete(id);
    if (error !== undefined) {
      reject(new Error(error));
    } else {
      resolve(picture);
    }
  }
}

const drawer = new Drawer();

/** @param {SubmitEvent} event */
async function onSubmit(event) {
  event.preventDefault();
  busy(true);
  say("Starting"); // at once: what it said of the last picture is not of this one
  const guidanceScale = Number(guidance.value);
  const negativePrompt = guidanceScale > 1 ? negative.value : undefined;
  const request = { prompt: prompt.value, seed: Number(seed.value), guidanceScale, negativePrompt };
  try {
    if (image.files?.length) {
      Object.assign(request, { image: await pixels(image.files[0]), strength: Number(strength.value) });
    }
    const picture = await drawer.generate(request, { provider: device.value }, showProgress);
    showPicture(picture, request);
  } catch (error) {
    say(/** @type {Error} */ (error).message, true);
  } finally {
    busy(false);
  }
}

/** @param {File} file @returns {Promise<Float32Array>} the picture in the size that is drawn, `[3, height, width]` in [0, 1] */
async function pixels(file) {
  const { height, width } = /** @type {any} */ (window).flashDeploy.manifest.picture;
  const bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" }).catch(() => {
    throw new Error(`${file.name} cannot be read as a picture: choose a PNG, JPEG or WebP file.`);
  });
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context?.drawImage(bitmap, 0, 0);
  const { data } = /** @type {ImageData} */ (context?.getImageData(0, 0, width, height));
  const plane = width * height;
  return Float32Array.from({ length: 3 * plane }, (_, k) => data[4 * (k % plane) + Math.floor(k / plane)] / 255);
}

/** @param {boolean} now whether a picture is being drawn */
function busy(now) {
  draw.disabled = now;
  stop.hidden = !now;
  progress.hidden = !now;
  canvas.setAttribute("aria-busy", String(now));
}

/** @param {keyof typeof STAGES} stage @param {number} done @param {number} total */
function showProgress(stage, done, total) {
  progress.max = total;
  progress.value = done;
  const parts = stage === "load" ? `${megabytes(done)} of ${megabytes(total)}` : total > 1 ? `step ${done} of ${total}` : "";
  say([STAGES[stage], parts].filter(Boolean).join(", "));
}

/** @param {import("./pipeline.js").Picture} picture @param {{prompt: string, seed: number}} request */
function showPicture(picture, request) {
  paint(picture);
  canvas.setAttribute("aria-label", `Picture of: ${request.prompt || "an empty prompt"}`);
  save.href = canvas.toDataURL("image/png");
  save.download = `seed-${request.seed}.png`;
  save.hidden = false;
  const cut = Math.max(0, ...Object.values(picture.cut));
  const note = cut ? ` The prompt is too long: its last ${cut} tokens are not seen.` : "";
  say(`Done in ${seconds(picture.timings_ms.total)}.${note}`);
  showTimings(picture.timings_ms);
}

/** @param {import("./pipeline.js").Picture} picture rounded to 8 bits as the Python runtime does */
function paint({ data, width, height }) {
  const image = new ImageData(width, height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * i + channel] = Math.round(255 * data[channel * plane + i]);
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")?.putImageData(image, 0, 0);
}

/** @param {Record<string, number>} timings_ms */
function showTimings({ encode, text, denoise, decode, load, total }) {
  const shown = {
    ...(encode === undefined ? {} : { "VAE encoder": encode }),
    "text encoders": text,
    denoising: denoise,
    "VAE decoder": decode,
    all: total,
    "of it loading": load,
  };
  const rows = Object.entries(shown).map(([name, ms]) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: name }));
    row.append(Object.assign(document.createElement("td"), { textContent: seconds(ms) }));
    return row;
  });
  element("timings-body").replaceChildren(...rows);
  element("timings").hidden = false;
}

/** @param {string} text @param {boolean} [wrong] */
function say(text, wrong = false) {
  const status = element("status");
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

/** A negative prompt says something where there is guidance alone. */
function showNegative() {
  element("negative-row").hidden = !(Number(guidance.value) > 1);
}

/** @param {number} ms */
function seconds(ms) {
  return `${(ms / 1000).toFixed(2)} s`;
}

/** @param {number} bytes */
function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

/** @param {any} manifest */
async function fillIn(manifest) {
  const { height, width } = manifest.picture;
  const steps = manifest.sampling.timesteps.length;
  const facts = [`${width} × ${height} px`, `${steps} steps`, `${megabytes(downloadBytes(manifest))}, downloaded once`];
  element("facts").textContent = facts.join(" · ");
  [canvas.width, canvas.height] = [width, height];
  guidance.value = String(manifest.sampling.guidance.guidance_scale);
  negative.value = manifest.sampling.guidance.negative_prompt;
  showNegative();
  element("upon-row").hidden = !drawsUpon(manifest);
  const offered = await devices(manifest);
  device.replaceChildren(
    ...offered.map(({ provider, label, refused }) => {
      const text = refused ? `${label}: ${refused}` : label;
      return Object.assign(document.createElement("option"), { value: provider, textContent: text, disabled: refused !== "" });
    }),
  );
  const threads = globalThis.crossOriginIsolated ? "" : " The server does not isolate the page: the CPU draws with one thread.";
  say(`Ready.${threads}`);
}

/** Make the page ready, or say why it cannot be. */
async function start() {
  const manifest = await new HttpFiles(new URL("..", import.meta.url)).manifest();
  checkDrawable(manifest);
  await fillIn(manifest);
  form.addEventListener("submit", onSubmit);
  stop.addEventListener("click", () => drawer.stop());
  element("dice").addEventListener("click", () => (seed.value = String(Math.floor(Math.random() * (LARGEST_SEED + 1)))));
  guidance.addEventListener("input", showNegative);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  draw.disabled = false;
  Object.assign(window, { flashDeploy: { manifest, generate: drawer.generate.bind(drawer), stop: drawer.stop.bind(drawer) } });
}

start().catch((error) => say(error.message, true));
