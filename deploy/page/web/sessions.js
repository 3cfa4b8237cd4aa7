/** A bundle's graphs in onnxruntime-web: loaded when needed, freed after their stage unless they are to be kept. */

import { BundleError } from "./errors.js";

const VENDOR = new URL("./vendor/onnxruntime-web/", import.meta.url);
/** The build for each execution provider; WebGPU's is twice as large, so that phones without WebGPU do not load it. */
const BUILDS = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };

/**
 * @typedef {{data: Float32Array | BigInt64Array, dims: number[]}} Value what goes into a graph or comes out of it
 * @typedef {(path: string, onBytes?: (bytes: number) => void) => Promise<Uint8Array<ArrayBuffer>>} Read a file of the bundle
 */

/** The loaded graphs of a bundle. */
export class Sessions {
  /**
   * @param {any} ort onnxruntime-web
   * @param {any} manifest the bundle's manifest
   * @param {{read: Read}} files the bundle's files
   * @param {"wasm" | "webgpu"} provider
   * @param {boolean} keep keep graphs after their stage
   */
  constructor(ort, manifest, files, provider, keep) {
    this._ort = ort;
    this._graphs = new Map(manifest.graphs.map((/** @type {any} */ graph) => [graph.name, graph]));
    this._sizes = new Map(manifest.files.map((/** @type {any} */ file) => [file.path, file.size_bytes]));
    this._files = files;
    this._provider = provider;
    this._keep = keep;
    /** @type {Map<string, any>} */
    this._loaded = new Map();
    this.load_ms = 0;
  }

  /**
   * Run a graph, loading it first if need be.
   *
   * @param {string} name the graph
   * @param {Record<string, Value>} inputs by name
   * @param {(done: number, total: number) => void} [onBytes] told of the graph's bytes as they come
   * @returns {Promise<Value[]>} its outputs, in the manifest's order
   */
  async run(name, inputs, onBytes) {
    const session = this._loaded.get(name) ?? (await this._load(name, onBytes));
    const feeds = Object.fromEntries(Object.entries(inputs).map(([input, array]) => [input, this._tensor(array)]));
    const outputs = await session.run(feeds).catch((/** @type {Error} */ error) => fail("A graph cannot be run.", name, error));
    const results = this._graphs.get(name).outputs.map((/** @type {any} */ port) => {
      const { data, dims } = outputs[port.name];
      return { data: checkFinite(data.slice(), name), dims: [...dims] };
    });
    Object.values(outputs).forEach((tensor) => tensor.dispose());
    return results;
  }

  /** Free what is loaded, unless it is to be kept. */
  async endStage() {
    if (!this._keep) {
      await this.free();
    }
  }

  /** Free all graphs. */
  async free() {
    const sessions = [...this._loaded.values()];
    this._loaded.clear();
    await Promise.all(sessions.map((session) => session.release()));
  }

  /** @param {string} name @param {(done: number, total: number) => void} [onBytes] */
  async _load(name, onBytes = () => {}) {
    await this.endStage();
    const began = performance.now();
    const { path } = this._graphs.get(name);
    const parts = [path, `${path}.data`].filter((part) => this._sizes.has(part));
    const total = parts.reduce((sum, part) => sum + this._sizes.get(part), 0);
    let done = 0;
    const [model, data] = await Promise.all(
      parts.map((part) => this._files.read(part, (bytes) => onBytes((done += bytes), total))),
    );
    const options = {
      executionProviders: [this._provider],
      externalData: data ? [{ path: `${path.split("/").pop()}.data`, data }] : [],
      logSeverityLevel: 3, // errors: what falls to the CPU provider is no news to the user
    };
    const session = await this._ort.InferenceSession.create(model, options).catch((/** @type {Error} */ error) =>
      fail("A graph cannot be loaded.", name, error),
    );
    this._loaded.set(name, session);
    this.load_ms += performance.now() - began;
    return session;
  }

  /** @param {Value} array */
  _tensor({ data, dims }) {
    return new this._ort.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, dims);
  }
}

/**
 * onnxruntime-web for an execution provider, from the bundle's own files.
 *
 * @param {"wasm" | "webgpu"} provider
 * @param {number} [threads] of one operator; by default the runtime's choice
 */
export async function loadRuntime(provider, threads) {
  const ort = await import(new URL(BUILDS[provider], VENDOR).href);
  ort.env.wasm.wasmPaths = VENDOR.href;
  ort.env.logLevel = "error";
  // Threads share memory, which browsers allow only to pages whose server isolates them; elsewhere onnxruntime-web would warn.
  const shared = globalThis.crossOriginIsolated ?? true;
  ort.env.wasm.numThreads = shared ? (threads ?? 0) : 1;
  return ort;
}

/**
 * @param {string} headline
 * @param {string} graph
 * @param {Error} error
 * @returns {never}
 */
function fail(headline, graph, error) {
  const remedy = "close other pages, or take another device; if it happens again, run `flash-deploy verify` on the bundle";
  throw new BundleError(headline, `${graph}: ${error?.message ?? error}`, remedy);
}

/**
 * @template {Float32Array | BigInt64Array} T
 * @param {T} data
 * @param {string} graph
 * @returns {T}
 */
function checkFinite(data, graph) {
  if (data instanceof Float32Array && !data.every(Number.isFinite)) {
    const remedy = "build it with --precision fp32";
    throw new BundleError("The bundle computes a result that is not finite.", `${graph} returns NaN or infinity`, remedy);
  }
  return data;
}
