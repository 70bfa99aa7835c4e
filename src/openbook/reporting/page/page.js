"use strict";
// Search over all test questions, and, where the page is served live, its renewal. No library, no network but the page's
// own server. Everything from the data is set as text.
(() => {
  const SHOWN = 30;
  const byId = (id) => document.getElementById(id);
  let data = null;
  let names = {};
  let limit = SHOWN;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function bar(kind, hundredths) {
    const outer = element("div", undefined, "bar " + kind);
    const track = element("span");
    const full = element("i");
    full.style.width = hundredths + "%";
    track.append(full);
    outer.append(track, element("span", (hundredths / 100).toFixed(2)));
    return outer;
  }

  function passage(number, [text, prior, posterior, relevant, places], answered) {
    const [title, words] = data.texts[text];
    const made = element("div", undefined, "passage");
    const top = element("div", undefined, "top");
    const name = element("b", number + ". ");
    if (relevant) name.append(element("span", "✓ ", "up"));
    name.append(title);
    top.append(name, bar("prior", prior));
    if (answered) top.append(bar("posterior", posterior));
    const body = element("p");
    let place = 0;
    for (let i = 0; i < places.length; i += 2) {
      body.append(words.slice(place, places[i]), element("mark", words.slice(places[i], places[i + 1])));
      place = places[i + 1];
    }
    body.append(words.slice(place));
    made.append(top, body);
    return made;
  }

  function heatMap(one) {
    const table = element("table", undefined, "heat");
    table.append(element("caption", "share of each passage in each token"));
    const head = element("tr");
    head.append(element("th", "token"));
    for (let i = 1; i <= one.c; i++) head.append(element("th", i));
    if (one.n > one.c) head.append(element("th", "others"));
    table.append(head);
    for (const [token, ...shares] of one.t) {
      const row = element("tr");
      row.append(element("th", token));
      for (const share of shares) {
        const cell = element("td", (share / 100).toFixed(2), "share");
        cell.style.setProperty("--share", share / 100);
        row.append(cell);
      }
      table.append(row);
    }
    return table;
  }

  function fill(made, one) {
    const answered = "y" in one;
    made.append(element("p", "expected " + one.a.join(" | ") + ("f" in one ? "; F1 " + one.f.toFixed(2) : "") +
      [one.r, one.h].filter(Boolean).map((group) => " · " + group).join(""), "soft"));
    if (!one.p) {
      made.append(element("p", "The passages of this question did not fit into the page.", "soft"));
      return;
    }
    if (!one.p.length) made.append(element("p", "No passages were used.", "soft"));
    else {
      const bars = element("div", undefined, "bars");
      bars.append(element("span"), element("span", "prior"), element("span", answered ? "posterior" : ""));
      made.append(bars);
    }
    one.p.forEach((read, place) => made.append(passage(place + 1, read, answered)));
    if (one.n > one.p.length) made.append(element("p", "and " + (one.n - one.p.length) + " more passage" + (one.n - one.p.length > 1 ? "s" : ""), "soft"));
    if (one.t) made.append(heatMap(one));
  }

  function question(one) {
    const made = element("details", undefined, "question");
    const head = element("summary");
    head.append(element("span", names[one.o], "tag " + (one.o === "right" ? "up" : "down")),
      element("span", one.q), element("b", "y" in one ? one.y || "(empty)" : ""));
    made.append(head);
    made.addEventListener("toggle", () => { if (made.open && made.children.length === 1) fill(made, one); });
    return made;
  }

  function render() {
    const words = byId("text").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const [wanted, relation, phrasing] = ["outcome", "relation", "phrasing"].map((id) => byId(id).value);
    const found = data.questions.filter((one) =>
      (!wanted || one.o === wanted || (wanted === "wrong" && one.o !== "right")) &&
      (!relation || one.r === relation) && (!phrasing || one.h === phrasing) &&
      words.every((word) => one.all.includes(word)));
    byId("list").replaceChildren(...found.slice(0, limit).map(question));
    byId("count").textContent = found.length + " of " + data.questions.length + " questions";
    byId("more").hidden = found.length <= limit;
  }

  function options(id, values) {
    const select = byId(id);
    const distinct = [...new Set(values.filter(Boolean))].sort();
    select.append(...distinct.map((value) => new Option(value, value)));
    select.hidden = distinct.length < 2;
  }

  function start() {
    const source = byId("data");
    if (!source) return;
    data = JSON.parse(source.textContent);
    names = Object.fromEntries([...byId("outcome").options].map((option) => [option.value, option.text]));
    for (const one of data.questions) one.all = [one.q, one.y, ...one.a].join(" ").toLocaleLowerCase();
    options("relation", data.questions.map((one) => one.r));
    options("phrasing", data.questions.map((one) => one.h));
    const again = () => { limit = SHOWN; render(); };
    for (const id of ["text", "outcome", "relation", "phrasing"]) byId(id).addEventListener("input", again);
    byId("more").addEventListener("click", () => { limit += 5 * SHOWN; render(); });
    render();
  }

  // Served live: whenever the run's files have changed, the parts of the page that differ are replaced, so that what is
  // opened, typed and scrolled to in the others stays.
  async function renew() {
    try {
      const state = await (await fetch("/state")).text();
      if (state === document.body.dataset.live) return;
      const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
      for (const part of page.querySelectorAll("[data-part]")) {
        const old = document.querySelector('[data-part="' + part.dataset.part + '"]');
        const content = part.innerHTML;
        if (written.get(part.dataset.part) === content) continue;
        written.set(part.dataset.part, content);
        old.replaceWith(part);
        if (part.dataset.part === "questions") start();
      }
      document.title = page.title;
      document.body.dataset.live = page.body.dataset.live;
    } catch (error) {
      document.title = "(stopped) " + document.title.replace("(stopped) ", "");
    }
  }

  const written = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part.innerHTML]));
  start();
  if (document.body.dataset.live) setInterval(renew, 2000);
})();
