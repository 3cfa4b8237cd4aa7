/** Prompts to token ids, as the `tokenizers` library of Rust and Python makes them; deploy/runtime/tokenizer.py in JavaScript. */

import { BundleError } from "./errors.js";
import { Tokenizer } from "./vendor/tokenizers/tokenizers.min.mjs";

/** One tokenizer of a bundle, which pads and cuts to its fixed length. */
export class PromptTokenizer {
  /**
   * @param {any} content what the bundle's tokenizer.json holds
   * @param {{max_length: number, pad_token_id: number}} record the manifest's entry
   */
  constructor(content, record) {
    this._tokenizer = new Tokenizer(content, {});
    this._record = record;
    this._specials = lowercases(content.normalizer)
      ? content.added_tokens.map((/** @type {any} */ token) => token.content)
      : null;
  }

  /**
   * Token ids of a prompt, always `max_length` of them, and how many of its tokens did not fit.
   *
   * The special tokens around the prompt stay when it is cut.
   *
   * @param {string} prompt
   * @returns {{ids: BigInt64Array, cut: number}}
   */
  encode(prompt) {
    const text = this._specials ? lowercase(checked(prompt), this._specials) : checked(prompt);
    const whole = this._tokenizer.encode(text).ids;
    const inner = this._tokenizer.encode(text, { add_special_tokens: false }).ids;
    const cut = Math.max(0, whole.length - this._record.max_length);
    const before = this._leading();
    const kept = [...whole.slice(0, before + inner.length - cut), ...whole.slice(before + inner.length)];
    const ids = new BigInt64Array(this._record.max_length).fill(BigInt(this._record.pad_token_id));
    ids.set(kept.map(BigInt));
    return { ids, cut };
  }

  /** How many special tokens come before the prompt: those before a letter that was not there without it. */
  _leading() {
    const [letter] = this._tokenizer.encode("a", { add_special_tokens: false }).ids;
    return this._tokenizer.encode("a").ids.indexOf(letter);
  }
}

/** @param {any} normalizer @returns {boolean} whether a tokenizer takes capitals for small letters */
function lowercases(normalizer) {
  return normalizer?.type === "Lowercase" || (normalizer?.normalizers ?? []).some(lowercases);
}

/**
 * Put the JavaScript library (0.2.0) right where its lower-casing is not that of the Rust library.
 *
 * - JavaScript writes a capital sigma at a word's end as ς; Rust lowers letter by letter, so that it is σ everywhere.
 * - A special token in other letters (`<|ENDOFTEXT|>`) is plain text. The library takes it for the token where nothing stands
 *   between it and the next true token or the prompt's ends; with a space after it, which CLIP's tokenizers drop, something does.
 *
 * @param {string} prompt
 * @param {string[]} specials the special tokens
 */
function lowercase(prompt, specials) {
  const special = new RegExp(`(${specials.map((token) => token.replace(/\W/g, "\\$&")).join("|")})`);
  return prompt
    .replaceAll("Σ", "σ")
    .split(special)
    .map((part) => (specials.includes(part) || !specials.includes(part.toLowerCase()) ? part : `${part} `))
    .join("");
}

/** @param {string} prompt @returns {string} the same, if UTF-8 can hold it */
function checked(prompt) {
  try {
    encodeURIComponent(prompt);
  } catch {
    throw new BundleError(
      "The prompt cannot be read.",
      "It holds half of a surrogate pair, which UTF-8 cannot",
      "remove the character",
    );
  }
  return prompt;
}
