// Browsers start no workers from files on disk. Opened from there, the site's search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!doctype html>" })
      this.ready = new Promise((done) => {
        this.frame.addEventListener("load", () => {
          const inside = this.frame.contentWindow
          const load = (address) =>
            new Promise((loaded, failed) => {
              const script = inside.document.createElement("script")
              Object.assign(script, { src: new URL(address, document.baseURI).href, onload: loaded, onerror: failed })
              inside.document.head.append(script)
            })
          inside.importScripts = (...addresses) =>
            addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve())
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
          load(url).then(() => done(inside))
        })
      })
      document.documentElement.append(this.frame)
    }
    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}
