// Building blocks: elements, texts, tokens, numbers, tables. No HTML is ever parsed.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

/** Sections that this page draws, by their ids: each file below adds its own. */
const parts = {};

let language = document.documentElement.lang.startsWith("zh") ? "zh" : "en";

function build(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, properties, ...children) =>
  build(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) =>
  build(document.createElementNS(SVG, tag), properties, children);
const math = (tag, ...children) => build(document.createElementNS(MATHML, tag), {}, children);

// ---- texts

const lookUp = (key) => key.split(".").reduce((node, part) => node?.[part], texts[language]) ?? key;

/** A text as nodes: "{name}" is replaced by what vars hold, strings or elements. */
function say(key, vars = {}) {
  const fragment = document.createDocumentFragment();
  for (const [index, part] of lookUp(key).split(/(\u221a?\{\w+\})/).entries()) {
    if (index % 2 === 0) fragment.append(...withSubscripts(part));
    else {
      const value = vars[part.match(/\w+/)[0]] ?? "";
      fragment.append(part.startsWith("\u221a") ? radical(value) : value);
    }
  }
  return fragment;
}
/** Writes d_k and W_O as mathematics does. */
const withSubscripts = (text) => text.split(/(\u221a?[A-Za-z]_[A-Za-z])/).map((part, index) => {
  if (index % 2 === 0) return part;
  const symbol = h("var", {}, part.at(-3), h("sub", {}, part.at(-1)));
  return part.startsWith("\u221a") ? radical(symbol) : symbol;
});
/** A square root; the style draws the sign, for no two fonts place theirs alike. */
const radical = (inside) =>
  h("span", { class: "root" }, h("span", { class: "unseen" }, "\u221a"), inside);

/** A text as a string, for labels and for what is spoken. */
const tell = (key, vars) => say(key, vars).textContent;

const note = (key, vars, properties) => h("p", { class: "note", ...properties }, say(key, vars));
const paragraph = (key, vars) => h("p", {}, say(key, vars));
const subheading = (key, vars) => h("h3", {}, say(key, vars));

// ---- tokens

// What has no shape of its own: controls, separators, surrogates, marks of direction.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

function visible(text) {
  return text.replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

/** Cuts a text to about so many columns; a Chinese character takes two. */
function clip(text, columns) {
  let width = 0;
  let cut = "";
  for (const character of text) {
    width += character > "\u2e7f" ? 2 : 1;
    if (width > columns) return `${cut.trimEnd()}\u2026`;
    cut += character;
  }
  return cut;
}

/** A token for reading: its own direction, never longer than a line. */
function token(text, columns = 40) {
  const shown = visible(text);
  const short = clip(shown, columns);
  return h(
    "bdi",
    { class: "token", title: short === shown ? null : clip(shown, 2000) },
    quietMark(short, h, "span"),
  );
}
const spoken = (text) => clip(visible(unmarked(text)), 40);

// SentencePiece marks the beginning of a word; the mark is shown, but must not shout.
const WORD_MARK = "\u2581";
const unmarked = (text) => (text.length > 1 && text.startsWith(WORD_MARK) ? text.slice(1) : text);
function quietMark(text, make, tag) {
  const [, place = "", rest] = /^(\d+ \u00b7 )?\u2581(.+)$/s.exec(text) ?? [];
  return rest ? [place, make(tag, { class: "word-mark" }, WORD_MARK), rest] : text;
}

// ---- numbers

const SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
const superscript = (exponent) =>
  String(exponent).replace(/./g, (c) => (c === "-" ? "\u207b" : SUPERSCRIPTS[Number(c)]));

function format(value, digits = 2) {
  const fixed = value.toFixed(digits);
  return (
    Number(fixed) === 0 ? Math.abs(Number(fixed)).toFixed(digits) : fixed
  ).replace("-", "\u2212");
}

const short = (value) => format(value, Math.abs(value - Math.round(value)) < 1e-9 ? 0 : 3);

/** Large and small numbers alike: 0.0042, 17.3, 4.85 x 10^8. */
function formatWide(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-4) {
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return `${mantissa.replace("-", "\u2212")} \u00d7 10${superscript(Number(exponent))}`;
  }
  if (size >= 1000) return Math.round(value).toLocaleString("en-US").replace("-", "\u2212");
  return format(value, size >= 100 ? 1 : size >= 1 ? 2 : 4);
}

/** A factor of a written product: a negative one in brackets. */
const factor = (x) => (x < 0 ? `(${format(x, 3)})` : format(x, 3));

/** A number on the page: shown rounded, kept whole in data-value. */
const number = (value, digits = 2, shown = format(value, digits)) =>
  h("data", { class: "number", value: String(value), dataset: { value: String(value) } }, shown);
const wide = (value) => number(value, 0, formatWide(value));
const percent = (value) =>
  number(value, 0, `${value > 0 && value < 0.0005 ? "<0.1" : format(100 * value, 1)} %`);

// ---- controls

/** A row of words or names of which one is chosen: radio buttons, so arrow keys work. */
function choice({ legend, name, options, selected, onchange, style = "segments" }) {
  const inputs = options.map((option, index) =>
    h("input", { type: "radio", name, value: index, checked: index === selected }),
  );
  const field = h(
    "fieldset",
    { class: style, onchange: (event) => onchange(Number(event.target.value)) },
    h("legend", {}, legend),
    h(
      "div",
      { class: "options" },
      options.map((option, i) => h("label", {}, inputs[i], h("span", {}, option))),
    ),
  );
  return { element: field, select: (index) => (inputs[index].checked = true) };
}

function dropdown({ label, options, selected, onchange, order = range(options.length) }) {
  const select = h(
    "select",
    { onchange: (event) => onchange(Number(event.target.value)) },
    order.map((index) =>
      h("option", { value: index, selected: index === selected }, options[index])),
  );
  return { element: h("label", { class: "field" }, h("span", {}, label), select), select };
}

function toggle({ label, checked, onchange }) {
  const input = h(
    "input",
    { type: "checkbox", role: "switch", checked, onchange: () => onchange(input.checked) },
  );
  return h("label", { class: "switch" }, input, h("span", {}, label));
}

/** Something that opens, and is built when it first does. */
function details(summary, content, properties) {
  const body = h("div", { class: "details-body" });
  const element = h("details", { class: "more", ...properties }, h("summary", {}, summary), body);
  element.addEventListener("toggle", () => {
    if (element.open && !body.hasChildNodes()) body.append(...[content()].flat());
  });
  return element;
}

// ---- tables

/** A table that may be wider than the screen: it scrolls in its own box. */
function table({ caption, head, rows, foot = [], className = "", rowHeads = true }) {
  const line = (cells, tag = rowHeads ? "th" : "td") =>
    cells.map((cell, index) =>
      cell instanceof HTMLTableCellElement ? cell : h(
        index ? "td" : tag,
        index || tag === "td" ? {} : { scope: "row" },
        cell,
      ),
    );
  const body = rows.map(
    (row) => (row instanceof HTMLTableRowElement ? row : h("tr", {}, line(row))),
  );
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: 0, "aria-label": caption },
    h(
      "table",
      { class: className },
      h("caption", {}, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map(
            (cell) => (
              cell instanceof HTMLTableCellElement ? cell : h("th", { scope: "col" }, cell)
            ),
          ),
        ),
      ),
      h("tbody", {}, body),
      foot.length > 0 ? h(
        "tfoot",
        {},
        foot.map((row) => (row instanceof HTMLTableRowElement ? row : h("tr", {}, line(row)))),
      ) : null,
    ),
  );
}

/** A table whose columns can be sorted; a row is a list of {value, cell}. */
function sortableTable({ caption, columns, rows, onpick }) {
  let order = { column: 0, down: false };
  const body = h("tbody");
  const heads = columns.map((label, column) => {
    const sort = () => {
      order = { column, down: order.column === column ? !order.down : column > 1 };
      fill();
    };
    return h(
      "th",
      { scope: "col" },
      h("button", { type: "button", class: "sort", onclick: sort }, label),
    );
  });
  function fill() {
    const sign = order.down ? -1 : 1;
    const sorted = [...rows].sort(
      (a, b) => sign * (a.cells[order.column].value - b.cells[order.column].value),
    );
    heads.forEach((head, column) => {
      if (column === order.column) head.setAttribute(
        "aria-sort",
        order.down ? "descending" : "ascending",
      );
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren(
      ...sorted.map((row) =>
        h("tr", { class: row.current ? "current" : null }, row.cells.map(
          ({ value, cell }) => h("td", {}, cell ?? String(value)),
        ),
          h(
            "td",
            {},
            h(
              "button",
              { type: "button", class: "link", onclick: () => onpick(row) },
              tell("common.show"),
            ),
          ),
        ),
      ),
    );
  }
  fill();
  const head = h(
    "tr",
    {},
    heads,
    h("th", { scope: "col" }, h("span", { class: "unseen" }, tell("common.show"))),
  );
  return h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption },
    h("table", { class: "compact" }, h("caption", {}, caption), h("thead", {}, head), body));
}

/** A bar whose length is a share of the largest value. */
function bar(share, className = "") {
  const width = clamp(Math.abs(share), 0, 1) * 100;
  return svg(
    "svg",
    {
      class: `bar ${className}`,
      viewBox: "0 0 100 10",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    svg("rect", { width: 100, height: 10, class: "bar-back" }),
    svg("rect", { width, height: 10, class: "bar-fill" }),
  );
}

// ---- formulas

const mi = (text) => math("mi", text);
const mn = (text) => math("mn", text);
const mo = (text) => math("mo", text);
const mrow = (...parts) => math("mrow", ...parts);
const frac = (above, below) => math("mfrac", above, below);
const sup = (base, exponent) => math("msup", base, exponent);
const sub = (base, index) => math("msub", base, index);
const sqrt = (inside) => math("msqrt", inside);
/** A formula that may break before each of its equals signs. */
function formula(...parts) {
  const lines = [[]];
  for (const part of parts) {
    if (part.textContent === "=") lines.push([]);
    lines.at(-1).push(part);
  }
  return h("div", { class: "formula" }, lines.map((line) => {
    const element = math("math", math("mstyle", ...line));
    element.firstChild.setAttribute("displaystyle", "true");
    return element;
  }));
}
const mv = (x, digits) => mn(format(x, digits));
