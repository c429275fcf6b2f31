// The camera: the middle square of its frames is classified as fast as answers come.

import { CAMERA_INSECURE, EngineError, cameraSentence } from "./messages.js";

const SHORTEST_MS = 60; // between two frames: more answers a second than the eye reads cost only power
const IDLE_MS = 300; // while the page is hidden

const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));

/** Runs the camera; `onFrame(bitmap)` answers a frame, `onError(sentence)` shows what went wrong. */
export class Camera {
  constructor(video, onFrame, onError) {
    this.video = video;
    this.onFrame = onFrame;
    this.onError = onError;
    this.stream = null;
  }

  get running() {
    return this.stream !== null;
  }

  /** Start it; return whether it runs. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.onError(CAMERA_INSECURE);
      return false;
    }
    try {
      const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: { ideal: "environment" } };
      const stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
      this.stream = stream;
      this.video.srcObject = stream;
      stream.getVideoTracks()[0].addEventListener("ended", () => {
        if (this.stream !== stream) return;
        this.stop();
        this.onError(cameraSentence({ name: "NotFoundError" }));
      });
      await this.video.play();
    } catch (error) {
      this.stop();
      this.onError(cameraSentence(error));
      return false;
    }
    this.#loop(this.stream);
    return true;
  }

  /** Stop it, and let go of the device. */
  stop() {
    this.stream?.getTracks().forEach(track => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }

  /** Return the middle square of the present frame. */
  square() {
    const { videoWidth: width, videoHeight: height } = this.video;
    const side = Math.min(width, height);
    return createImageBitmap(this.video, (width - side) >> 1, (height - side) >> 1, side, side);
  }

  async #loop(stream) {
    while (this.stream === stream) {
      const begin = performance.now();
      let wait = SHORTEST_MS;
      if (document.hidden || !this.video.videoWidth) {
        wait = IDLE_MS;
      } else {
        try {
          await this.onFrame(await this.square());
        } catch (error) {
          if (this.stream !== stream) return;
          // A busy server says when to come back; one that is gone, or a model that failed, won't be back by itself.
          const retry = error instanceof EngineError ? error.retrySeconds : null;
          if (retry === null) this.stop();
          this.onError(error.message);
          wait = 1000 * retry;
        }
      }
      await pause(Math.max(0, begin + wait - performance.now()));
    }
  }
}
