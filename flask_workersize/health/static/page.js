"use strict";

// The first half is flask_workersize/health/view.py once more, under the same names: the server
// fills the page when it is opened, this script while it is open. A test compares the two.

const MOST_BOXES = 96;
const CRITICAL_PERCENT = 90;
const UNKNOWN = "Unknown: there are no figures of the last hour.";
const LIMITS = {
  cpu: "limited by CPU",
  memory: "limited by memory",
  explicit: "set by hand",
  min_workers: "at the lower bound for workers",
  max_workers: "at the upper bound for workers",
};

const GUARDS = {
  recycling: "; a worker was recycled lately",
  reduced: "; fewer workers than planned",
  warn: "; short, and recycling does not help",
  critical: "; the kernel may kill a process at any moment",
};

function view(report, now) {
  const shown = { status: [element("span", report.status, report.status)] };
  if (report.status === "fail") return { ...shown, title: ["Capacity"], error: [report.error] };
  Object.assign(shown, { title: ["Capacity"], line: line(report), why: why(report) });
  Object.assign(shown, memory(report));
  const remarks = [...(report.warnings ?? []), ...(report.notes ?? [])];
  if (remarks.length) shown.remarks = remarks.map((text) => element("li", text));
  if (!("busy" in report)) {
    shown.ask = [report.serving
      ? "What happens now is shown with the token."
      : "flask-workersize did not start this process: the plan is what it would use."];
    return { ...shown, "ask-title": ["Live figures"] };
  }
  shown.title = [`${report.busy} of ${report.slots} busy · Capacity`];
  Object.assign(shown, figures(report), history(report.history ?? []));
  Object.assign(shown, { slots: slots(report), "slots-note": slotsNote(report), "ask-title": ["Workers"] });
  const advice = (report.advice ?? []).map((text) => element("li", text));
  const calm = report.history?.length ? "Nothing to do." : UNKNOWN;
  shown.advice = advice.length ? advice : [element("li", calm, "calm")];
  if ("processes" in report) {
    const oldest = [...report.processes].sort((one, other) => other.age_seconds - one.age_seconds);
    shown.workers = oldest.map((item) => ["tr", {}, worker(item, report)]);
  } else {
    shown.ask = ["Each worker is shown with the token."];
  }
  shown.counts = counts(report);
  const events = (report.events ?? []).map((item) => event(item, now)).reverse();
  shown.events = events.length ? events : [element("li", "None so far.", "calm")];
  return shown;
}

function element(tag, text, css = "") {
  return [tag, css ? { class: css } : {}, [text]];
}

function line(report) {
  const each = counted(report.threads, "thread");
  const workers = report.server === "waitress"
    ? `${each} in one process`
    : `${counted(report.workers, "worker")} × ${each}`;
  const parts = [report.server, workers, LIMITS[report.limited_by]];
  if (report.uptime_seconds != null) parts.push(`up ${span(report.uptime_seconds)}`);
  if (report.draining) parts.push("about to stop");
  return parts.map((part) => element("span", part));
}

function figures(report) {
  const { rates, queued } = report;
  const full = report.slots && report.busy >= report.slots ? "full" : "";
  const shown = {
    "busy": [element("strong", String(report.busy), full), ` of ${report.slots}`],
    "busy-note": ["slots"],
    "queued": [element("strong", queued == null ? "–" : number(queued), queued ? "full" : "")],
    "queued-note": [queued == null ? "not reported here" : "nobody waited in the last minute"],
    "rate": [element("strong", "–")],
    "rate-note": ["requests per second"],
    "mean": [element("strong", "–")],
    "mean-note": ["per request"],
  };
  if (report.queue_mean_seconds) {
    const mean = span(report.queue_mean_seconds), most = span(report.queue_most_seconds);
    shown["queued-note"] = [`last minute: ${mean} on average, ${most} at most`];
  }
  if (rates) {
    shown["busy-note"] = [`${number(rates.busy)} on average over ${span(rates.seconds)}`];
    shown.rate = [element("strong", number(rates.requests_per_second))];
    if (rates.mean_ms) {
      const [time, unit] = span(rates.mean_ms / 1000).split(" ");
      shown.mean = [element("strong", time), ` ${unit}`];
      shown["mean-note"] = [`per request, ${span(rates.cpu_ms / 1000)} computing`];
    }
  }
  return shown;
}

function slots(report) {
  const running = report.running ?? [], timeout = report.timeout_seconds ?? 0, boxes = [];
  for (let index = 0; index < Math.min(Math.max(report.slots, report.busy), MOST_BOXES); index++) {
    if (index < running.length) {
      const css = timeout && running[index] > timeout ? "over" : "busy";
      boxes.push(element("li", span(running[index]), css));
    } else if (index < report.busy) {
      boxes.push(element("li", "client", "held"));
    } else {
      boxes.push(element("li", "free", "free"));
    }
  }
  if (report.slots > MOST_BOXES) {
    boxes.push(element("li", `${report.slots - MOST_BOXES} more`, "more"));
  }
  return boxes;
}

function slotsNote(report) {
  const note = "for how long each request has run";
  return [report.timeout_seconds ? `${note}; the timeout is ${span(report.timeout_seconds)}` : note];
}

function history(points) {
  const bars = points.map((point, index) => {
    const height = Math.max(point.utilization, 0.015);
    const place = { x: percent((60 - points.length + index) / 60), y: percent(1 - height) };
    const size = { width: percent(0.013), height: percent(height) };
    return ["rect", { ...(point.waited ? { class: "waited" } : {}), ...place, ...size, rx: "1" }, []];
  });
  const seconds = sum(points.map((point) => point.seconds));
  if (!seconds) return { bars, "chart-note": ["Busy slots: no figures yet"] };
  const mean = sum(points.map((point) => point.utilization * point.seconds)) / seconds;
  const most = Math.max(...points.map((point) => point.utilization));
  const requests = sum(points.map((point) => point.requests));
  const waited = sum(points.map((point) => point.waited));
  const shares = `${whole(100 * mean)} % on average, ${whole(100 * most)} % at most`;
  const note = [`Busy slots: ${shares}. ${whole(requests)} requests`];
  if (waited) note.push(", ", element("span", `${whole(waited)} of them waited`, "waited"));
  return { bars, "chart-note": note };
}

function why(report) {
  const formulas = report.why ?? {}, binds = report.limited_by, rows = [];
  for (const [name, title] of [["cpu", "CPU"], ["memory", "Memory"]]) {
    const value = [formulas[name] ?? ""];
    if (binds === name) value.push(" ", element("b", "binds"));
    rows.push(element("dt", title), ["dd", {}, value]);
  }
  if (formulas.adapts) rows.push(element("dt", "Adapts"), ["dd", {}, [`within ${formulas.adapts}`]]);
  if (binds !== "cpu" && binds !== "memory") {
    const explicit = report.server === "gunicorn" ? "workers" : "threads";
    const source = (report.sources ?? {})[binds === "explicit" ? explicit : binds];
    const text = LIMITS[binds] + (source ? `: ${source}` : "");
    rows.push(element("dt", "Setting"), ["dd", {}, [text, " ", element("b", "binds")]]);
  }
  return rows;
}

function memory(report) {
  let limit = report.memory_limit_mb, used = report.memory_used_mb, each, parts, note;
  if (!limit || used == null) {
    [limit, used] = [report.memory_available_mb, report.estimated_memory_mb];
    each = Array(report.workers).fill(report.worker_memory_mb);
    parts = report.shared_memory_mb ? [["shared", "shared", report.shared_memory_mb]] : [];
    note = `Planned: ${mb(used)} of ${mb(limit)} that were available`;
  } else {
    each = (report.processes ?? []).map((item) => item.uss_mb).filter((size) => size != null);
    parts = [["shared", each.length ? "shared and others" : "used", Math.max(used - sum(each), 0)]];
    note = `${mb(used)} of ${mb(limit)} used${GUARDS[report.guard] ?? ""}`;
  }
  if (each.length) {
    const all = each.slice(0, 8).map(whole).join(", ") + (each.length > 8 ? ", …" : "");
    const detail = new Set(each.map(whole)).size > 1 ? ` (${all})` : ` × ${whole(each[0])}`;
    parts.push(["worker", counted(each.length, "worker") + (each.length > 1 ? detail : ""), sum(each)]);
  }
  parts.push(["free", "free", Math.max(limit - used, 0)]);
  const sizes = parts.filter(([css]) => css === "shared").map(([css, , size]) => [css, size]);
  sizes.push(...each.map((size) => ["worker", size]));
  const scale = Math.max(limit, used, sum(sizes.map(([, size]) => size))) || 1;
  const end = (count) => sum(sizes.slice(0, count).map(([, size]) => size)) / scale;
  const bars = sizes.map(([css], index) => {
    const place = { x: percent(end(index)), width: percent(end(index + 1) - end(index)) };
    return ["rect", { class: css, ...place }, []];
  });
  const recycle = report.memory_recycle_percent, marks = [];
  if (recycle != null && "busy" in report && report.guard !== "off") {
    const share = limit / scale / 100;
    for (const [at, text] of [[recycle, `${recycle} % recycle`], [CRITICAL_PERCENT, "90 %"]]) {
      const x = percent(at * share);
      marks.push(["line", { x1: x, x2: x, y1: "18", y2: "46" }, []], ["text", { x, y: "12" }, [text]]);
    }
  }
  const legend = parts.map(([css, name, size]) => {
    return ["li", { class: css }, [`${name} `, element("b", mb(size))]];
  });
  return { "memory": bars, marks, "memory-note": [note], legend };
}

function worker(item, report) {
  const own = item.uss_mb, planned = report.worker_memory_mb, age = item.memory_age_seconds;
  const cells = [["th", { scope: "row" }, [String(item.pid)]]];
  const busy = item.ready ? `${item.busy} of ${item.slots}` : "starting";
  for (const text of [span(item.age_seconds), whole(item.served), busy]) cells.push(element("td", text));
  if (own == null) return [...cells, element("td", "–"), element("td", "–")];
  return [
    ...cells,
    ["td", {}, [element("span", whole(own), own > planned ? "over" : ""), ` of ${whole(planned)}`]],
    element("td", age == null ? "–" : span(age)),
  ];
}

function counts(report) {
  const names = {
    served: "served",
    recycled: "recycled",
    restarts: "restarted",
    crashed: "crashed",
    oom_kills: "OOM-killed",
    shed: "turned away",
    abandoned: "abandoned",
  };
  return Object.entries(names).filter(([name]) => report[name] != null).map(([name, title]) => {
    const css = report[name] && ["crashed", "oom_kills", "shed"].includes(name) ? "some" : "";
    return ["div", {}, [element("dt", title), element("dd", whole(report[name]), css)]];
  });
}

function event(item, now) {
  const at = new Date(Math.floor(item.at) * 1000).toISOString();
  const time = ["time", { datetime: `${at.slice(0, 19)}Z` }, [`${at.slice(11, 16)} UTC`]];
  const ago = now - item.at >= 1 ? `${span(Math.max(now - item.at, 0))} ago` : "now";
  return ["li", {}, [time, element("span", ago, "ago"), element("span", item.text, "text")]];
}

function whole(value) {
  return String(Math.floor(value + 0.5)).replace(/\B(?=(\d{3})+$)/g, ",");
}

function number(value) {
  const tenths = Math.floor(value * 10 + 0.5);
  return tenths > 0 && tenths < 100 && tenths % 10 ? (tenths / 10).toFixed(1) : whole(value);
}

function span(seconds) {
  if (seconds < 0.9995) return `${number(seconds * 1000)} ms`;
  if (seconds < 59.5) return `${number(seconds)} s`;
  for (const [most, unit, name] of [[3570, 60, "min"], [172800, 3600, "h"]]) {
    if (seconds < most) return `${whole(seconds / unit)} ${name}`;
  }
  return `${whole(seconds / 86400)} d`;
}

function mb(value) {
  return `${whole(value)} MB`;
}

function percent(share) {
  return `${(Math.floor(share * 10000 + 0.5) / 100).toFixed(2)}%`;
}

function counted(count, noun) {
  return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

// The second half keeps the page up to date.

const POLL_MS = 1000;
const MOST_MS = 10000;
const $ = (id) => document.getElementById(id);
// Without a name and a password, if the address was opened with them.
const address = location.origin + location.pathname + location.search;

let token = "";
let timer = 0;
let turn = 0;
let wait = POLL_MS;
let answered = Date.now();
let silent = false;

function make(node, namespace) {
  if (typeof node === "string") return document.createTextNode(node);
  const [tag, attributes, children] = node;
  const made = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => make(child, namespace)));
  return made;
}

function draw(place, nodes) {
  const next = place.cloneNode(false);
  next.append(...nodes.map((node) => make(node, place.namespaceURI)));
  // What stays the same is left alone, so that a screen reader reports changes only.
  if (!place.isEqualNode(next)) place.replaceChildren(...next.childNodes);
}

function show(parts) {
  for (const place of document.querySelectorAll("[data-part]")) {
    draw(place, parts[place.dataset.part] ?? []);
  }
  for (const place of document.querySelectorAll("[data-needs]")) {
    place.hidden = !place.dataset.needs.split(" ").some((name) => name in parts);
  }
}

async function poll() {
  clearTimeout(timer);
  const sent = token, mine = ++turn, headers = { Accept: "application/json" };
  // A header takes bytes, and the server reads them as UTF-8.
  if (sent) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(sent))}`;
  try {
    const signal = AbortSignal.timeout(MOST_MS);
    const answer = await fetch(address, { headers, signal, cache: "no-store" });
    const report = await answer.json();
    if (mine !== turn) return;
    if (!report.status) throw new Error("not a report");
    const date = Date.parse(answer.headers.get("Date") ?? "");
    show(view(report, (date || Date.now()) / 1000));
    check(sent, report);
    answered = Date.now();
    silent = false;
    wait = report.status === "fail" ? MOST_MS : POLL_MS;
    $("silence").textContent = "";
  } catch {
    if (mine !== turn) return;
    silent = true;
    wait = Math.min(2 * wait, MOST_MS);
    tellSilence();
  }
  document.body.classList.toggle("silent", silent);
  timer = document.hidden ? 0 : setTimeout(poll, wait);
}

function tellSilence() {
  draw(document.querySelector("[data-part=status]"), [element("span", "no answer", "fail")]);
  $("silence").textContent = `No answer since ${span((Date.now() - answered) / 1000)}; trying again.`;
}

function check(sent, report) {
  const opened = "pid" in report;
  $("ask").hidden = opened || !report.serving;
  if (sent && !opened && report.status !== "fail") {
    token = "";
    $("refused").textContent = "This token was not accepted. NOW_LMS_HEALTH_TOKEN of the server has the right one.";
    $("token").setAttribute("aria-invalid", "true");
    $("token").focus();
  }
}

function open(submitted) {
  submitted.preventDefault();
  token = $("token").value.trim();
  $("token").value = $("refused").textContent = "";
  $("token").removeAttribute("aria-invalid");
  if (token) poll();
}

$("ask").addEventListener("submit", open);
setInterval(() => { if (silent && !document.hidden) tellSilence(); }, 1000);
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) poll();
});
poll();
