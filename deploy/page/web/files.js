/**
 * A bundle's files over HTTP: each fetched once, checked against the manifest and kept in the browser's own storage.
 *
 * Graphs are loaded anew for each picture, because only one fits into a phone's memory; without the storage each picture would
 * download the bundle again from servers that forbid caching.
 */

import { BundleError } from "./errors.js";

const STORE = "flash-deploy";
const DAMAGED = "run `flash-deploy verify` on the bundle and copy it to the server again";

/** @typedef {{path: string, size_bytes: number, sha256: string}} FileRecord */

/** Files of the bundle in a folder of the server. */
export class HttpFiles {
  /** @param {URL} base the bundle's folder */
  constructor(base) {
    this._base = base;
    /** @type {Map<string, FileRecord>} */
    this._records = new Map();
  }

  /** The bundle's manifest; later reads are checked against it. */
  async manifest() {
    const response = await this._fetch("manifest.json");
    const manifest = await response.json();
    this._records = new Map(manifest.files.map((/** @type {FileRecord} */ record) => [record.path, record]));
    return manifest;
  }

  /**
   * A file's content.
   *
   * @param {string} path as the manifest names it
   * @param {(bytes: number) => void} [onBytes] told how many more bytes have come
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   */
  async read(path, onBytes = () => {}) {
    const record = this._records.get(path);
    if (!record) {
      throw new BundleError("The bundle is incomplete.", `${path} is not in its manifest`, "build it again");
    }
    const store = await openStore();
    const key = this._key(record);
    const stored = await store?.match(key);
    const response = stored ?? (await this._fetch(path, store ? "no-store" : "no-cache")); // one copy on the disk, not two
    const content = await readBody(response, record, onBytes);
    if (!stored) {
      await check(content, record);
      await keep(store, key, content);
    }
    return content;
  }

  /** Remove what the storage holds of an earlier bundle in the same folder; bundles in folders beneath it keep theirs. */
  async forgetOthers() {
    const store = await openStore();
    const keys = new Map([...this._records.values()].map((record) => [new URL(record.path, this._base).href, this._key(record)]));
    for (const request of (await store?.keys()) ?? []) {
      const key = keys.get(request.url.split("?")[0]);
      if (key !== undefined && key !== request.url) {
        await store?.delete(request);
      }
    }
  }

  /** @param {FileRecord} record */
  _key({ path, sha256 }) {
    return new URL(`${path}?sha256=${sha256}`, this._base).href;
  }

  /** @param {string} path @param {RequestCache} [cache] */
  async _fetch(path, cache = "no-cache") {
    const response = await fetch(new URL(path, this._base), { cache }).catch((error) => {
      throw new BundleError("A file cannot be fetched.", `${path}: ${error.message}`, "look whether the server still runs");
    });
    if (!response.ok) {
      throw new BundleError("A file cannot be fetched.", `${path}: the server says ${response.status}`, DAMAGED);
    }
    return response;
  }
}

/** The browser's storage, where it has one: only pages from https or from the same machine do. */
async function openStore() {
  return globalThis.caches ? caches.open(STORE).catch(() => undefined) : undefined;
}

/**
 * @param {Response} response
 * @param {FileRecord} record
 * @param {(bytes: number) => void} onBytes
 */
async function readBody(response, record, onBytes) {
  const content = new Uint8Array(record.size_bytes);
  let at = 0;
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      break;
    }
    if (at + value.length > content.length) {
      throw new BundleError("A file is damaged.", `${record.path} is longer than ${record.size_bytes} bytes`, DAMAGED);
    }
    content.set(value, at);
    at += value.length;
    onBytes(value.length);
  }
  if (at !== record.size_bytes) {
    throw new BundleError("A file is damaged.", `${record.path}: expected ${record.size_bytes} bytes, got ${at}`, DAMAGED);
  }
  return content;
}

/**
 * @param {Uint8Array<ArrayBuffer>} content
 * @param {FileRecord} record
 */
async function check(content, record) {
  if (!globalThis.crypto?.subtle) {
    return; // where there is no storage there is no hashing either: plain http from another machine
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const got = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (got !== record.sha256) {
    throw new BundleError("A file is damaged.", `${record.path}: expected sha256 ${record.sha256}, got ${got}`, DAMAGED);
  }
}

/**
 * @param {Cache | undefined} store
 * @param {string} key
 * @param {Uint8Array<ArrayBuffer>} content
 */
async function keep(store, key, content) {
  try {
    await store?.put(key, new Response(content));
  } catch {
    // No room: the picture is drawn all the same, and the next one downloads again.
  }
}
