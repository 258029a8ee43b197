// The page: asks for work, hands it to a worker, tells how far it is. One page, one device.

const BEAT_MS = 3000; // how often the server hears of a page that is at work
const RETRY_MS = 2000;
const page = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
  byte.toString(16).padStart(2, "0"),
).join("");
const element = (id) => document.getElementById(id);

let worker = null; // at work, if there is work
let running = false; // whether the loop runs
let finished = 0;
let asking = null; // ends the question that is open

function show(state, now, detail = "", share = null) {
  if (element("state").textContent !== now) element("state").textContent = now;
  document.title = `${now}: a device of Tailorbird`;
  element("state").dataset.state = state;
  element("detail").textContent = detail;
  element("progress").hidden = share === null;
  element("progress").value = share ?? 0;
}

const visible = () => document.visibilityState === "visible";
const pause = (ms) => new Promise((wake) => setTimeout(wake, ms));

class Gone extends Error {} // this address has run out

async function post(path, content, signal) {
  const response = await fetch(path, { method: "POST", body: JSON.stringify(content), signal });
  if (response.status === 404 || response.status === 403) throw new Gone();
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

async function facts() {
  const data = navigator.userAgentData; // not in every browser, nor on every page
  const brand = data?.brands?.find((one) => !/not.?a.?brand/i.test(one.brand));
  const more = await data?.getHighEntropyValues?.(["model", "platformVersion"]).catch(() => null);
  const system = data ? `${data.platform} ${more?.platformVersion ?? ""}`.trim() : navigator.platform;
  const memory = navigator.deviceMemory;
  return {
    page,
    agent: (brand ? `${brand.brand} ${brand.version}` : navigator.userAgent).slice(0, 400),
    machine: [more?.model, system].filter(Boolean).join(", ").slice(0, 400),
    cores: navigator.hardwareConcurrency || 1,
    isolated: self.crossOriginIsolated === true && typeof SharedArrayBuffer === "function",
    ...(memory ? { memory_gb: memory } : {}),
  };
}

// One piece of work, from beginning to end, in a worker of its own: its memory is free after it.
function work(turn, task) {
  const what = task.kind === "measure" ? "Timing networks" : "Running a network";
  const many = task.files.length === 1 ? task.files[0] : `${task.files.length} files`;
  let share = 0;
  show("work", what, many, share);
  return new Promise((resolve) => {
    worker = new Worker("worker.js", { type: "module" });
    let answering = false;
    const end = () => {
      clearInterval(beat);
      worker?.terminate();
      worker = null;
      resolve();
    };
    const beat = setInterval(async () => {
      const said = await post(`work/${turn}/alive`, { share }).catch(() => null);
      if (said?.state === "over" && !answering) end();
    }, BEAT_MS);
    const answer = async (content) => {
      if (answering) return;
      answering = true;
      for (let attempt = 0; attempt < 5; attempt += 1) {
        try {
          await post(`work/${turn}/done`, content);
          finished += 1;
          break;
        } catch {
          await pause(RETRY_MS);
        }
      }
      element("count").textContent = String(finished);
      end();
    };
    worker.onmessage = ({ data }) => {
      if (data.answer) {
        answer(data.answer);
      } else {
        share = data.share;
        show("work", what, `${many}: ${data.doing}`, share);
      }
    };
    worker.onerror = (event) => {
      event.preventDefault();
      answer({ fault: { text: event.message || "the worker could not start" } });
    };
    worker.stop = end;
    worker.postMessage({ turn, task });
  });
}

async function keepAwake() {
  if (!navigator.wakeLock) {
    element("awake").textContent = "may fall asleep: keep it on by hand";
    return;
  }
  try {
    const lock = await navigator.wakeLock.request("screen");
    element("awake").textContent = "is kept on";
    lock.addEventListener("release", () => {
      element("awake").textContent = "may fall asleep";
    });
  } catch {
    element("awake").textContent = "may fall asleep: keep it on by hand";
  }
}

async function loop() {
  if (running) return;
  running = true;
  const hello = await facts();
  for (const name of ["agent", "machine", "cores"]) element(name).textContent = hello[name] || "-";
  element("isolated").textContent = hello.isolated
    ? "several (SharedArrayBuffer is there)"
    : "one (no SharedArrayBuffer: it needs https or localhost)";
  keepAwake();
  while (visible()) {
    try {
      asking = new AbortController();
      const said = await post("next", hello, asking.signal);
      if (!visible()) break;
      hello.shown = said.state;
      if (said.state === "work") await work(said.turn, said.task);
      else if (said.state === "idle") show("wait", "Ready", "Waiting for work");
      else show("wait", "Another page is at work", "This one goes on when that one is closed");
    } catch (error) {
      hello.shown = "";
      if (error instanceof Gone) {
        show("bad", "This address has run out", "Open the new one that Tailorbird shows");
        return;
      }
      if (!visible()) break;
      show("bad", "The computer does not answer", "Trying again; is Tailorbird still running?");
      await pause(RETRY_MS);
    }
  }
  running = false;
}

// A page in the background is slowed down, and what it would measure with it.
function leave() {
  asking?.abort();
  worker?.stop();
  navigator.sendBeacon("bye", JSON.stringify({ page }));
  show("wait", "In the background", "Bring this page to the front to go on");
}

addEventListener("pagehide", leave);
addEventListener("pageshow", (event) => event.persisted && loop());
document.addEventListener("visibilitychange", () => {
  if (visible()) loop();
  else leave();
});
show("wait", "Connecting");
loop();
