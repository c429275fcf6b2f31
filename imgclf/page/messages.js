// The sentences for what can go wrong, one each: what came, what was expected, what to do next.

/** An image can't be used; the message goes on after the image's name. */
export class ImageError extends Error {}

/** A request can't be answered now; `retrySeconds` is how long to wait, null where waiting doesn't help. */
export class EngineError extends Error {
  constructor(message, retrySeconds = null) {
    super(message);
    this.retrySeconds = retrySeconds;
  }
}

const megabytes = bytes => `${Math.round(bytes / 1e6).toLocaleString("en")} MB`;

/** Return the sentence for an error, about the image `name`. */
export function sentence(error, name = "") {
  if (error instanceof EngineError) return error.message;
  if (error instanceof ImageError) return `${name || "The image"} ${error.message}.`;
  return `${name || "The image"} could not be classified (${error?.message || error}).`;
}

/** Raise ImageError for a file that can't be an image before it is read. */
export function checkFile(file, maxBytes) {
  if (!file.size) throw new ImageError("is empty; choose an image");
  if (file.size > maxBytes) {
    throw new ImageError(`has ${megabytes(file.size)}; at most ${megabytes(maxBytes)} are read, choose a smaller image`);
  }
  if (file.type && !file.type.startsWith("image/") && file.type !== "application/octet-stream") {
    throw new ImageError("is not an image; choose a JPEG, PNG, WebP or GIF file");
  }
}

export const NO_IMAGE_DROPPED = "What was dropped holds no image; drop an image file.";
export const NO_IMAGE_PASTED = "The clipboard holds no image and no link to one; copy an image, then paste it here.";
export const NO_LINK = "This is no link to an image; it must begin with http:// or https://.";
export const SERVER_GONE = "The server does not answer; start it again, then repeat this.";

const CAMERA_ERRORS = {
  NotAllowedError: "The camera was refused; allow it for this page in the browser, then start it again.",
  NotFoundError: "No camera was found; connect one, or choose an image.",
  OverconstrainedError: "No camera was found; connect one, or choose an image.",
  NotReadableError: "The camera can't be read; close the program that uses it, then start it again.",
};

/** Return the sentence for a camera that did not start. */
export function cameraSentence(error) {
  return CAMERA_ERRORS[error?.name] ?? `The camera did not start (${error?.message || error}); choose an image.`;
}

export const CAMERA_INSECURE = "The browser offers no camera here; open this page through https or from 127.0.0.1.";
