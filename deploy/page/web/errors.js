/** Complaints that a user can act on: what could not be done, where and what is wrong, what to do. */
export class BundleError extends Error {
  /**
   * @param {string} headline what could not be done
   * @param {string} complaint where, what is wrong, expected and got
   * @param {string} remedy what the user can do about it
   */
  constructor(headline, complaint, remedy) {
    super(`${headline} ${complaint}. What to do: ${remedy}.`);
    this.name = "BundleError";
  }
}
