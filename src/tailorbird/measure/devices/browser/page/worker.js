// One piece of work: loads files, runs or times them, and says what came of it.

const CLOCK_STEPS = 100; // a sample lasts at least so many steps of the clock
const MOST_REPEATS = 1 << 20;
const WARM_MS = 60; // a network is as fast as it gets when it was no faster for so long
const MOST_WARM_MS = 3000;
const STEADY = 0.95;
const TELL_MS = 500;

let told = 0;
function tell(doing, share) {
  const now = performance.now();
  if (now - told < TELL_MS) return;
  told = now;
  postMessage({ doing, share });
}

class Fault extends Error {
  constructor(file, cause) {
    super(cause?.message ?? `error ${cause}`);
    this.file = file;
  }
}

async function bytes(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(await response.text());
  return response.arrayBuffer();
}

async function load(ort, turn, task, number) {
  try {
    const model = new Uint8Array(await bytes(`work/${turn}/file/${number}`));
    return await ort.InferenceSession.create(model, {
      executionProviders: [task.provider],
      graphOptimizationLevel: "all",
    });
  } catch (error) {
    throw new Fault(number, error);
  }
}

async function input(ort, turn, task, number) {
  const values = new Float32Array(await bytes(`work/${turn}/input/${number}`));
  return new ort.Tensor("float32", values, task.inputs[number]);
}

// The smallest step of the clock, which browsers make coarse on purpose, in ms.
function clockStep() {
  let step = Infinity;
  for (let times = 0; times < 20; times += 1) {
    const begun = performance.now();
    let now = begun;
    while (now === begun) now = performance.now();
    step = Math.min(step, now - begun);
  }
  return step;
}

class Runner {
  constructor(session, image) {
    this.session = session;
    this.feeds = { [session.inputNames[0]]: image };
    this.repeats = 1;
  }

  async once() {
    return this.session.run(this.feeds);
  }

  async sample() {
    const begun = performance.now();
    for (let run = 0; run < this.repeats; run += 1) await this.session.run(this.feeds);
    return performance.now() - begun;
  }

  // Run untimed, until how many runs make a sample is settled and the browser has translated what
  // it runs often: it begins with a quick translation, and a better one follows from elsewhere.
  async warmUp(runs, leastMs) {
    for (let run = 0; run < runs; run += 1) await this.once();
    const until = performance.now() + MOST_WARM_MS;
    let before = await this.fastest(leastMs);
    while (performance.now() < until) {
      const now = await this.fastest(leastMs);
      if (now > before * STEADY) return;
      before = Math.min(before, now);
    }
  }

  // The fastest run for a while, in ms; as many runs make a sample as take long enough.
  async fastest(leastMs) {
    const until = performance.now() + WARM_MS;
    let best = Infinity;
    do {
      const took = await this.sample();
      best = Math.min(best, took / this.repeats);
      if (took < leastMs && this.repeats < MOST_REPEATS) {
        const wanted = took > leastMs / 8 ? (this.repeats * leastMs * 1.1) / took : this.repeats * 8;
        this.repeats = Math.min(MOST_REPEATS, Math.max(this.repeats + 1, Math.ceil(wanted)));
        best = Infinity;
      }
    } while (performance.now() < until || best === Infinity);
    return best;
  }

  async burst(samples) {
    await this.once();
    const times = [];
    for (let one = 0; one < samples; one += 1) times.push((await this.sample()) / this.repeats);
    return times;
  }
}

async function measure(ort, turn, task) {
  const leastMs = Math.max(task.sample_ms, CLOCK_STEPS * clockStep());
  const runners = [];
  for (let number = 0; number < task.files.length; number += 1) {
    tell(`loading ${number + 1} of ${task.files.length}`, 0);
    const session = await load(ort, turn, task, number);
    const runner = new Runner(session, await input(ort, turn, task, number));
    try {
      await runner.warmUp(task.warmup, leastMs);
    } catch (error) {
      throw new Fault(number, error);
    }
    runners.push(runner);
  }
  const rounds = runners.map(() => []);
  const until = performance.now() + task.seconds * 1000;
  let done = 0;
  for (let round = 0; round < task.bursts.length; round += 1) {
    for (const index of task.turns[round]) {
      rounds[index].push(await runners[index].burst(task.bursts[round]));
    }
    done += task.bursts[round];
    tell(`round ${round + 1} of ${task.bursts.length}`, (round + 1) / task.bursts.length);
    if (performance.now() > until && done >= task.least) break;
  }
  return { rounds_ms: rounds };
}

function joined(parts) {
  const all = new Float32Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

async function run(ort, turn, task) {
  const session = await load(ort, turn, task, 0);
  const [into] = session.inputNames;
  const [out] = session.outputNames;
  for (let number = 0; number < task.inputs.length; number += 1) {
    tell(`part ${number + 1} of ${task.inputs.length}`, number / task.inputs.length);
    const [count, ...rest] = task.inputs[number];
    const images = new Float32Array(await bytes(`work/${turn}/input/${number}`));
    const size = images.length / count;
    const parts = [];
    let dims = [];
    for (let start = 0; start < count; start += task.batch) {
      const end = Math.min(start + task.batch, count);
      const batch = images.subarray(start * size, end * size);
      let answer;
      try {
        const tensor = new ort.Tensor("float32", batch, [end - start, ...rest]);
        answer = (await session.run({ [into]: tensor }))[out];
      } catch (error) {
        throw new Fault(0, error);
      }
      if (answer.type !== "float32") throw new Fault(0, new Error(`its output is ${answer.type}`));
      parts.push(Float32Array.from(answer.data));
      dims = answer.dims.slice(1);
    }
    const path = `work/${turn}/output/${number}?dims=${[count, ...dims].join(",")}`;
    const response = await fetch(path, { method: "POST", body: joined(parts) });
    if (!response.ok) throw new Error(await response.text());
  }
  return { outputs: task.inputs.length };
}

onmessage = async ({ data: { turn, task } }) => {
  try {
    if (task.threads > 1 && self.crossOriginIsolated !== true) {
      throw new Error(`${task.threads} threads need SharedArrayBuffer, which this page has not`);
    }
    const ort = await import(`./ort/${task.module}`);
    ort.env.wasm.numThreads = task.threads;
    ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
    ort.env.logLevel = "fatal";
    const answer = await (task.kind === "measure" ? measure : run)(ort, turn, task);
    postMessage({ answer });
  } catch (error) {
    const text = String(error?.message ?? error).slice(0, 1000);
    postMessage({ answer: { fault: { text, ...(error instanceof Fault ? { file: error.file } : {}) } } });
  }
};
