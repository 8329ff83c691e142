"use strict";

// The page is a client of the public API like any other. It asks the node that
// served it, and shows where each answer comes from.

const $ = (id) => document.getElementById(id);
const pageOfKeys = 500;
const refreshEvery = 2000;

// element makes a node; text is never taken for markup.
function element(tag, properties = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in e) e[name] = value;
    else e.setAttribute(name, value);
  }
  e.append(...children);
  return e;
}

// ---- asking ---------------------------------------------------------------

// written is the newest revision this page has made: its later reads wait for
// it, so that one sees one's own writes at every site.
let written = 0n;

class Refusal extends Error {
  constructor(status, body) {
    super(body.message || `The node answered ${status}.`);
    this.status = status;
    this.hint = body.hint || "";
  }
}

async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { Accept: "application/json", ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { message: "This node cannot be reached." });
  }
  if (!reply.ok && !(reply.status === 404 && reply.headers.get("X-Consul-Index"))) {
    const text = await reply.text();
    let body = { message: text };
    try { body = JSON.parse(text); } catch { /* plain text */ }
    throw new Refusal(reply.status, body);
  }
  showAnswering(reply.headers);
  return reply;
}

function showAnswering(headers) {
  const node = headers.get("X-Holdfast-Node");
  if (!node) return;
  const parts = [`${node} in ${headers.get("X-Holdfast-Site")}`, `revision ${headers.get("X-Holdfast-Applied")}`];
  if (headers.get("X-Consul-KnownLeader") === "false") parts.push("no leader known");
  $("answering").textContent = parts.join(" · ");
}

// keyPath escapes all but slashes. A key that begins with a slash cannot be
// asked for by path.
const keyPath = (key) => "/v1/kv/" + key.split("/").map(encodeURIComponent).join("/");

function readPath(path, ...parameters) {
  if (written > 0n) parameters.push(`min_index=${written}`);
  return parameters.length ? `${path}?${parameters.join("&")}` : path;
}

function trouble(error) {
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? [error.message, error.hint].filter(Boolean).join(" — ") : "";
}

// ---- sites ----------------------------------------------------------------

const stateTone = { leader: "good", voter: "good", learner: "good", spare: "good", "catching-up": "warn", unreachable: "bad" };
const statusTone = { level: "good", "catching-up": "warn", starting: "warn", "cut-off": "warn", failed: "bad" };

const state = (name, tones) => element("span", { className: `state ${tones[name] || "warn"}` }, name || "unknown");

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i ? n.toFixed(1) : n} ${units[i]}`;
}

function seconds(n) {
  if (n < 1) return `${Math.round(n * 1000)} ms`;
  if (n < 120) return `${n.toFixed(1)} s`;
  if (n < 7200) return `${Math.round(n / 60)} min`;
  return `${(n / 3600).toFixed(1)} h`;
}

function lagText(lag) {
  if (!lag.Entries && !lag.Bytes && lag.Seconds < 0.001) return "none";
  const eta = lag.ETA >= 0 ? `, level in ${seconds(lag.ETA)}` : "";
  return `${lag.Entries} entries, ${bytes(lag.Bytes)}, ${seconds(lag.Seconds)}${eta}`;
}

// What a server asked to be, and whether it is that now.
function roleOf(server) {
  if (server.Role === "voter" && !server.Voter) return "voter to be";
  return server.Role === "spare" && server.Voter ? "spare, votes" : server.Role;
}

function siteTable(site, asked) {
  const caption = element("caption", {}, site.Name || "unnamed");
  if (site.Home) caption.append(element("span", { className: "tag" }, "home"));
  if (site.Leader) caption.append(element("span", { className: "tag good" }, "leads"));
  const columns = ["Node", "Role", "State", "Revision", "Lag", "Lineage", "Last contact", "Clients"];
  const head = columns.map((name) => element("th", { scope: "col", className: name === "Revision" ? "number" : "" }, name));
  const rows = site.Servers.map((server) => {
    const name = element("th", { scope: "row" }, server.Name);
    if (server.Name === asked) name.append(element("span", { className: "tag" }, "this node"));
    const client = server.HTTP ? element("a", { href: `//${server.HTTP}/ui/` }, server.HTTP) : "";
    return element("tr", { title: `${server.ID} ${server.Version}` }, name,
      element("td", {}, roleOf(server)),
      element("td", {}, state(server.State, stateTone)),
      element("td", { className: "number" }, String(server.Applied)),
      element("td", {}, lagText(server.Lag)),
      element("td", {}, element("code", {}, (server.Lineage || "").slice(0, 12))),
      element("td", {}, server.LastContact),
      element("td", {}, client));
  });
  return element("div", { className: "site" }, element("table", {}, caption,
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}

function facts(list, pairs) {
  list.replaceChildren(...pairs.map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))));
}

async function showSites(signal) {
  const [sitesReply, replicaReply] = await Promise.all([
    ask("/v1/sites", { signal }), ask("/v1/replica/status", { signal }),
  ]);
  const sites = await sitesReply.json();
  const replica = await replicaReply.json();
  const asked = sitesReply.headers.get("X-Holdfast-Node");
  const servers = sites.flatMap((site) => site.Servers);
  const leader = servers.find((server) => server.Leader);
  $("summary").textContent = `${servers.length} nodes in ${sites.length} sites, ` +
    (leader ? `led by ${leader.Name}.` : "no leader known.");
  $("sites").replaceChildren(...sites.map((site) => siteTable(site, asked)));
  const staleness = replica.Staleness >= 0 ? `at most ${seconds(replica.Staleness / 1000)}` : "unknown";
  facts($("replica"), [
    ["Status", state(replica.Status, statusTone)],
    ["Mode", replica.Mode],
    ["Staleness", staleness],
    ["Certified as of", replica.FreshAsOf ? new Date(replica.FreshAsOf).toLocaleString() : "never"],
    ["Revision", String(replica.Applied)],
    ["Failed probes in a row", String(replica.FailedRequests)],
    ["Last catch-up", replica.LastCatchUp.Kind
      ? `${replica.LastCatchUp.Kind}, ${replica.LastCatchUp.Records} records, ${bytes(replica.LastCatchUp.Bytes)} in ${seconds(replica.LastCatchUp.Seconds)}`
      : "none"],
    ["Lineage", element("code", {}, replica.Lineage || "none")],
  ]);
}

// ---- keys -----------------------------------------------------------------

let folder = "";    // the prefix being listed
let listing = [];   // its keys and folders
let shown = 0;      // how many of them are on the page
let opened = null;  // the entry in the editor; null for a new key

// Flags and indexes reach beyond what a JavaScript number holds, so they are
// taken from the text.
function exactEntry(text) {
  const entry = JSON.parse(text)[0];
  const number = (name) => new RegExp(`"${name}":(\\d+)`).exec(text.replace(/"Key":"(?:[^"\\]|\\.)*"/, ""))[1];
  for (const name of ["Flags", "LockIndex", "CreateIndex", "ModifyIndex"]) entry[name] = number(name);
  return entry;
}

async function showKeys(prefix, signal) {
  folder = prefix;
  $("prefix").value = prefix;
  showCrumbs();
  const path = readPath(keyPath(prefix), "keys", "separator=%2F");
  const reply = await ask(path, { signal });
  listing = reply.status === 404 ? [] : await reply.json();
  $("keys").replaceChildren();
  shown = 0;
  showMore();
}

function showMore() {
  const next = listing.slice(shown, shown + pageOfKeys);
  const base = folder.slice(0, folder.lastIndexOf("/") + 1);
  $("keys").append(...next.map((key) => {
    const inside = key.endsWith("/") && key !== folder;
    return element("li", {}, element("a", {
      href: (inside ? "#/keys/" : "#/key/") + encodeURIComponent(key), className: inside ? "folder" : "",
    }, key.slice(base.length) || key));
  }));
  shown += next.length;
  $("more").hidden = shown >= listing.length;
  $("count").textContent = listing.length === 0 ? "No keys here."
    : shown < listing.length ? `${shown} of ${listing.length} shown` : `${listing.length} shown`;
  markOpened();
}

function markOpened() {
  for (const link of $("keys").querySelectorAll("a")) {
    if (opened && link.getAttribute("href") === "#/key/" + encodeURIComponent(opened.Key)) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function showCrumbs() {
  const crumbs = [element("a", { href: "#/keys/" }, "all")];
  let path = "";
  for (const part of folder.split("/").slice(0, -1)) {
    path += part + "/";
    crumbs.push(element("span", { ariaHidden: "true" }, "/"), element("a", { href: "#/keys/" + encodeURIComponent(path) }, part || "(empty)"));
  }
  $("crumbs").replaceChildren(...crumbs);
}

async function openKey(key, signal) {
  const reply = await ask(readPath(keyPath(key)), { signal });
  if (reply.status === 404) {
    edit(null, key);
    say("There is no such key; saving creates it.", "warn");
    return;
  }
  edit(exactEntry(await reply.text()), key);
}

function edit(entry, key) {
  opened = entry;
  $("editor").hidden = false;
  $("editor-title").textContent = entry ? "Key" : "New key";
  $("key").value = key;
  $("key").readOnly = Boolean(entry);
  $("delete").hidden = $("reload").hidden = !entry;
  $("flags").value = entry ? entry.Flags : "0";
  const raw = entry && entry.Value ? Uint8Array.from(atob(entry.Value), (c) => c.charCodeAt(0)) : new Uint8Array();
  let text = "";
  let binary = false;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
    // A text area would change what these mean.
    binary = /[\0\r]/.test(text);
  } catch {
    binary = true;
  }
  $("value").value = binary ? "" : text;
  $("value").placeholder = binary ? `${raw.length} bytes` : "";
  $("binary").hidden = !binary;
  if (binary) $("download").href = keyPath(key) + "?raw";
  $("facts").hidden = !entry;
  if (entry) {
    facts($("facts"), [
      ["Size", bytes(raw.length)], ["Created at", entry.CreateIndex], ["Changed at", entry.ModifyIndex],
      ["Lock", entry.Session ? `held by ${entry.Session}` : "free"],
    ]);
  }
  untouched = entry ? $("value").value : null;
  say("");
  markOpened();
}

let untouched = null; // the value as the editor showed it first; null for a new key

function closeEditor() {
  $("editor").hidden = true;
  opened = null;
  markOpened();
}

function say(text, tone = "") {
  $("message").textContent = text;
  $("message").className = `message ${tone}`;
}

async function write(method, key, parameters, body) {
  const reply = await ask(`${keyPath(key)}?${parameters}`, { method, body });
  const index = BigInt(reply.headers.get("X-Consul-Index") || 0);
  if (index > written) written = index;
  return (await reply.text()).trim() === "true";
}

async function saveKey() {
  const key = $("key").value;
  if (key.startsWith("/")) return say("A key that begins with a slash cannot be reached by its path.", "bad");
  if (!$("binary").hidden && $("value").value === untouched) return say("Enter text to replace the binary value.", "warn");
  const condition = opened ? opened.ModifyIndex : "0"; // never over what was not seen
  const done = await write("PUT", key, `cas=${condition}&flags=${$("flags").value || 0}`, $("value").value);
  if (!done) {
    return say(opened ? "Somebody changed this key since you opened it. Copy your text, then reload." : "This key exists already.", "bad");
  }
  const target = "#/key/" + encodeURIComponent(key);
  if (location.hash !== target) history.replaceState(null, "", target);
  await showKeys(key.slice(0, key.lastIndexOf("/") + 1));
  await openKey(key);
  say("Saved.", "good");
}

async function deleteKey() {
  $("confirm-key").textContent = opened.Key;
  const dialog = $("confirm");
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "delete") return;
  if (!await write("DELETE", opened.Key, `cas=${opened.ModifyIndex}`)) {
    return say("Somebody changed this key since you opened it. Reload it first.", "bad");
  }
  closeEditor();
  location.hash = "#/keys/" + encodeURIComponent(folder);
  await showKeys(folder);
}

// busy runs an action of the editor once at a time and shows what goes wrong.
async function busy(action) {
  const buttons = $("editor").querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    await action();
  } catch (error) {
    say([error.message, error.hint].filter(Boolean).join(" — "), "bad");
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
  }
}

// ---- views ----------------------------------------------------------------

let leaving = new AbortController(); // of what the present view still asks
let timer = 0;

async function show() {
  leaving.abort();
  clearTimeout(timer);
  leaving = new AbortController();
  const { signal } = leaving;
  const [, view = "sites", argument = ""] = /^#\/([a-z]+)\/?(.*)$/.exec(location.hash) || [];
  let key = "";
  try { key = decodeURIComponent(argument); } catch { /* a broken address shows all keys */ }
  const keys = view === "keys" || view === "key";
  $("view-sites").hidden = keys;
  $("view-keys").hidden = !keys;
  for (const link of document.querySelectorAll("[data-view]")) {
    if ((link.dataset.view === "keys") === keys) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = keys ? `${key || "Keys"} – Holdfast` : "Sites – Holdfast";
  try {
    if (!keys) {
      await showSites(signal);
    } else if (view === "keys") {
      closeEditor();
      await showKeys(key, signal);
    } else {
      const parent = key.slice(0, key.lastIndexOf("/") + 1);
      if (parent !== folder || listing.length === 0) await showKeys(parent, signal);
      await openKey(key, signal);
    }
    if (!signal.aborted) trouble(null);
  } catch (error) {
    if (signal.aborted) return;
    trouble(error);
  }
  if (!keys && !signal.aborted) timer = setTimeout(show, refreshEvery);
}

$("prefix-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const target = "#/keys/" + encodeURIComponent($("prefix").value.replace(/^\/+/, ""));
  if (location.hash === target) show();
  else location.hash = target;
});
$("new-key").addEventListener("click", () => { edit(null, folder); $("key").focus(); });
$("more").addEventListener("click", showMore);
$("editor").addEventListener("submit", (event) => { event.preventDefault(); busy(saveKey); });
$("reload").addEventListener("click", () => busy(() => openKey(opened.Key)));
$("delete").addEventListener("click", () => busy(deleteKey));
$("close").addEventListener("click", () => { closeEditor(); history.replaceState(null, "", "#/keys/" + encodeURIComponent(folder)); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && location.hash.startsWith("#/key") === false) show(); });
window.addEventListener("hashchange", show);
show();
