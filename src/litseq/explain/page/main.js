// The page: one drawing function per section, and the switches that draw them again.

// What a change between words and pieces touches.
const WORDED = ["overview", "attention", "alignment"];

const record = unpack(packedRecord, bytes.subarray(jsonEnd + 1));

function redraw(name) {
  const figure = document.querySelector(`#${name} > .part`);
  if (!figure) return null;
  const opened = [...figure.querySelectorAll("details")].map((element) => element.open);
  figure.replaceChildren(
    ...[parts[name](record.sentences[state.sentence])].flat(3).filter(Boolean),
  );
  figure.querySelectorAll("details").forEach((element, i) => (element.open = opened[i] ?? false));
  return figure;
}
const redrawAll = () => Object.keys(parts).forEach(redraw);

function speakLanguage() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = `${tell("page.title")} \u00b7 litseq`;
  document.querySelectorAll("[data-text]").forEach(
    (node) => (node.textContent = tell(node.dataset.text)),
  );
  document.getElementById("footer").textContent = tell("page.footer", { version: record.litseq });
  document.querySelectorAll("[data-label]").forEach(
    (node) => node.setAttribute("aria-label", tell(node.dataset.label)),
  );
}

const THEMES = ["auto", "light", "dark"];

function drawSwitches() {
  const language_ = choice({
    legend: tell("page.language"), name: "language", options: [
      "English",
      "\u4e2d\u6587",
    ], selected: language === "zh" ? 1 : 0,
    onchange: (index) => {
      language = ["en", "zh"][index];
      drawSwitches();
      speakLanguage();
      redrawAll();
      document.querySelector("input[name=language]:checked").focus();
    },
  });
  const theme = choice({
    legend: tell("page.theme"), name: "theme", options: THEMES.map((name) => tell(`page.${name}`)),
    selected: THEMES.indexOf(document.documentElement.dataset.theme),
    onchange: (index) => {
      document.documentElement.dataset.theme = THEMES[index];
      redrawCanvases();
    },
  });
  const sections = [...document.querySelectorAll("main section")].map((section) => section.id);
  const worded = WORDED.map((name) => sections.indexOf(name) + 1).filter(Boolean).join(", ");
  const words = choice({
    legend: tell("page.units", { sections: worded }), name: "units", options: [
      tell("page.pieces"),
      tell("page.words"),
    ], selected: Number(state.words),
    onchange: (index) => {
      state.words = index === 1;
      WORDED.forEach((name) => parts[name] && redraw(name));
    },
  });
  const sentence = record.sentences.length < 2 ? null : dropdown({
    label: tell("page.sentence"),
    options: record.sentences.map(({ source }, i) => `${i + 1}. ${clip(visible(source), 48)}`),
    selected: state.sentence,
    onchange: (index) => {
      state.sentence = index;
      Object.assign(state.head, { index: null, query: null, key: null });
      Object.assign(state.scores, { step: null, key: null });
      state.output.step = 0;
      redrawAll();
    },
  });
  document.getElementById("switches").replaceChildren(
    ...[sentence?.element, words.element, language_.element, theme.element].filter(Boolean),
  );
}

/** Marks the section that is being read in the list of sections. */
function followReading() {
  const links = new Map(
    [...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]),
  );
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((item) => item.isIntersecting)) {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  links.forEach((_, id) => observer.observe(document.getElementById(id)));
}

document.documentElement.classList.add("scripted");
// where the list of sections stands above the text, it must not fill the first screen
document.querySelector("nav details").open = matchMedia("(min-width: 60rem)").matches;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCanvases);
drawSwitches();
redrawAll();
followReading();
document.documentElement.dataset.ready = "true";
