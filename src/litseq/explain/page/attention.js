// Every attention of a Transformer: all heads small, one head large.

const kindsOf = (detail) => ["encoder", "decoder", "cross"].filter((kind) =>
  detail.attention.some((item) => item.kind === kind));
const kindName = (kind) => tell(`kind.${kind}`);
const headNumber = (item, head) => (item.heads ? item.heads[head] : head);
const headName = (kind, layer, head) =>
  tell("kind.head", { kind: kindName(kind), layer: String(layer + 1), head: String(head + 1) });

/** The record's full-precision numbers of a head, if it holds them. */
const microscopic = (detail, kind, layer, head) =>
  detail.heads.findIndex(
    (item) => item.kind === kind && item.layer === layer && item.head === head,
  );

const defaultHead = (detail) => Math.max(
  0,
  detail.heads.findIndex((head) => head.kind === "cross"),
);

/** Weights of a head: the model's own floats where the record has them, else 256 steps. */
function weightsOf(detail, item, head) {
  const exact = microscopic(detail, item.kind, item.layer, headNumber(item, head));
  return exact >= 0 ? rowsOf(detail.heads[exact].weights) : rowsOf(item.weights, head);
}

/** Weight times length of the value vector, each row to sum 1 again. */
function byNorm(table, item, head) {
  const norms = vector(item.value_norms, head);
  return table.map((row) => {
    const products = row.map((weight, key) => weight * norms[key]);
    const total = sum(products);
    return products.map((x) => (total > 0 ? x / total : 0));
  });
}

/** Columns of the summary: what the record calls it, what the page does. */
const FIGURES = [
  ["entropy", "spread"],
  ["confidence", "largest"],
  ["diagonality", "diagonality"],
  ["coverage", "coverage"],
  ["agreement", "agreement"],
];

parts.attention = function drawAttention(sentence) {
  const { detail } = sentence;
  const leftOut = sentence.left_out?.maps
    ? note("attention.left_out", { count: String(sentence.left_out.maps) })
    : null;
  if (detail.attention.length === 0) return [leftOut];
  const kinds = kindsOf(detail);
  const chosen = state.map;
  if (!kinds.includes(chosen.kind)) {
    // begin with the head that the next section works out
    const first = detail.heads[defaultHead(detail)] ?? { kind: kinds.at(-1), layer: 0, head: 0 };
    Object.assign(chosen, { kind: first.kind, layer: first.layer, head: first.head });
  }
  const worked = document.getElementById("head") !== null; // models of one's own have no such section
  const grid = h("div", { class: "grid-of-heads" });
  const large = h("div", { class: "large" });
  const about = h("p", { class: "about" });

  const figures = FIGURES.filter(([key]) => detail.attention[0].summary[key]);
  const layers = () => detail.attention.filter((item) => item.kind === chosen.kind);
  const current = () => layers().find((item) => item.layer === chosen.layer);
  const view = (item, head) => {
    const [rows, columns] = sides[item.kind](sentence);
    let weights = weightsOf(detail, item, head);
    if (chosen.norms && item.value_norms) weights = byNorm(weights, item, head);
    return {
      rows: rows.labels,
      columns: columns.labels,
      weights: mergeTable(weights, rows.words, columns.words),
    };
  };

  function pick(layer, head) {
    [chosen.layer, chosen.head] = [layer, head];
    for (const button of grid.querySelectorAll("button")) {
      const here = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
      button.setAttribute("aria-pressed", String(here));
    }
    drawLarge();
  }
  function drawGrid() {
    if (!current()) chosen.layer = layers().at(-1).layer;
    chosen.head = clamp(chosen.head, 0, current().weights.shape[0] - 1);
    about.replaceChildren(say(`kind.${chosen.kind}_about`));
    grid.replaceChildren(...layers().map((item) => h("div", { class: "layer-of-heads" },
      h("span", { class: "layer-name" }, tell("kind.layer", { layer: String(item.layer + 1) })),
      range(item.weights.shape[0]).map((head) => {
        const name = headName(item.kind, item.layer, headNumber(item, head));
        const figure = format(item.summary.entropy[headNumber(item, head)], 2);
        return h("button", {
          type: "button", class: "head", dataset: { layer: item.layer, head },
          "aria-label": `${name}, ${tell("attention.spread")} ${figure}`,
          "aria-pressed": "false", title: name, onclick: () => pick(item.layer, head),
        }, thumbnail(view(item, head).weights), h("span", {}, String(headNumber(item, head) + 1)));
      }))));
    pick(chosen.layer, chosen.head);
  }
  function drawLarge() {
    const item = current();
    const { rows, columns, weights } = view(item, chosen.head);
    const name = headName(item.kind, item.layer, headNumber(item, chosen.head));
    const masked = (r, c) => item.kind === "decoder" && c > r;
    const line = readout();
    const lines = tokenLines(
      {
        rows,
        columns,
        weights,
        label: tell("attention.lines", { name }),
        onhover: (r) => show(r, argmax(weights[r]), true),
      },
    );
    const labels = (r, c) => (
      { row: rows[r], column: columns[c], weight: format(weights[r][c], 2) }
    );
    const grid = matrix({
      label: name, rows, columns,
      cell: (r, c) => (
        {
          share: weights[r][c],
          text: format(weights[r][c], 2).replace("0.", "."),
          masked: masked(r, c),
        }
      ),
      speak: (r, c) => masked(r, c) ? tell(
        "attention.speak_masked",
        labels(r, c),
      ) : tell("attention.speak", labels(r, c)),
      onmove: (r, c) => show(r, c),
      start: [Math.min(1, rows.length - 1), argmax(weights[Math.min(1, rows.length - 1)])],
    });
    function show(r, c, fromLines = false) {
      lines.highlight(r);
      if (fromLines) grid.moveTo(r, c, { quiet: true });
      line.replaceChildren(say("attention.cell", {
        row: token(rows[r], 24), column: token(columns[c], 24),
        weight: number(weights[r][c], 3), total: number(sum(weights[r]), 2),
        entropy: number(entropy(weights[r]), 2),
      }));
    }
    const first = Math.min(1, rows.length - 1);
    show(first, argmax(weights[first]));
    const exact = microscopic(detail, item.kind, item.layer, headNumber(item, chosen.head));
    large.replaceChildren(
      h("h3", { "aria-live": "polite" }, name),
      h("div", { class: "pair" },
        h("div", {}, grid.element, line, legend("0", "1", tell("attention.weight"))),
        h(
          "div",
          { class: "beside" },
          lines.element,
          h("p", { class: "axis" }, tell(`kind.${item.kind}_lines`)),
        )),
      h("div", { class: "actions" },
        worked ? h(
          "button",
          { type: "button", class: "action", disabled: exact < 0, onclick: () => work(exact) },
          tell("attention.work_out"),
        ) : null,
        worked && exact < 0 ? note("attention.not_kept") : null,
        asTable(
          {
            caption: name,
            corner: tell(`kind.${item.kind}_corner`),
            rows,
            columns,
            text: (r, c) => number(weights[r][c], 3),
          },
        )),
    );
  }
  function work(index) {
    state.head.index = index;
    redraw("head");
    const heading = document.querySelector("#head h2");
    heading.tabIndex = -1;
    heading.focus();
    heading.scrollIntoView();
  }
  const summary = () => sortableTable({
    caption: tell("attention.summary"),
    columns: [
      "column_layer",
      "column_head",
      ...figures.map(([, key]) => key),
    ].map((key) => tell(`attention.${key}`)),
    rows: layers().flatMap((item) => range(item.weights.shape[0]).map((head) => ({
      item, head,
      cells: [
        { value: item.layer + 1 }, { value: headNumber(item, head) + 1 },
        ...figures.map(
          ([key]) => item.summary[key][headNumber(item, head)],
        ).map((x) => ({ value: x, cell: number(x, 2) })),
      ],
    }))),
    onpick: (row) => {
      pick(row.item.layer, row.head);
      large.scrollIntoView({ block: "nearest" });
    },
  });
  const summaryBox = h("div", {});
  const refresh = () => {
    drawGrid();
    summaryBox.replaceChildren(details(tell("attention.summary"), summary));
  };
  const kindChoice = choice({
    legend: tell(
      "attention.which",
    ), name: "kind", options: kinds.map(kindName), selected: kinds.indexOf(chosen.kind),
    onchange: (index) => { chosen.kind = kinds[index]; refresh(); },
  });
  const norms = detail.attention.every((item) => item.value_norms)
    ? toggle(
      {
        label: tell("attention.norms"),
        checked: chosen.norms,
        onchange: (on) => { chosen.norms = on; drawGrid(); },
      },
    )
    : null;
  refresh();
  return [
    h("div", { class: "controls" }, kindChoice.element, norms),
    norms ? note("attention.norms_text") : null,
    about, grid, note("attention.grid"), large,
    summaryBox, note("attention.summary_text"),
    worked ? note("attention.steps") : null,
    leftOut,
  ];
};

/** Where queries, keys and values come from, for each attention. */
parts.kinds = function drawKinds(sentence) {
  const { detail } = sentence;
  const [S, T] = [sentence.src.tokens.length, sentence.tgt.tokens.length];
  const shape = (rows, columns) => `${rows}\u00a0\u00d7\u00a0${columns}`;
  const dk = detail.d_k;
  const row = (kind, rows, columns) => {
    const [from, to] = {
      encoder: ["source", "source"], decoder: ["output", "output"], cross: ["output", "source"],
    }[kind].map((side) => ` (${tell(`overview.${side}`)})`);
    const items = detail.attention.filter((item) => item.kind === kind);
    return [
      kindName(kind), tell(`kinds.${kind}_q`), tell(`kinds.${kind}_kv`),
      h(
        "span",
        { class: "shapes" },
        `Q ${shape(rows, dk)}${from}`,
        h("br"),
        `K ${shape(columns, dk)}${to}`,
        h("br"),
        `V ${shape(columns, dk)}${to}`,
      ),
      shape(rows, columns), maskPicture(kind, rows, columns),
      shape(items.length, items[0]?.weights.shape[0] ?? 0),
    ];
  };
  return [
    table({
      caption: tell("kinds.caption"),
      className: "kinds",
      head: [
        "kinds.name",
        "kinds.q",
        "kinds.kv",
        "kinds.shapes",
        "kinds.weights",
        "kinds.mask",
        "kinds.count",
      ].map((key) => tell(key)),
      rows: [
        ...kindsOf(detail).map(
          (kind) => (
            {
              encoder: row("encoder", S, S),
              decoder: row("decoder", T, T),
              cross: row("cross", T, S),
            }
          )[kind],
        ),
        [
          tell("kinds.rnn"),
          tell("kinds.rnn_q"),
          tell("kinds.rnn_kv"),
          tell("kinds.rnn_shapes"),
          shape(T, S),
          maskPicture("cross", T, S),
          "\u2013",
        ],
      ],
    }),
    note("kinds.shapes_text", { S: String(S), T: String(T), dk: String(dk) }),
    formula(mi("Attention"), mo("("), mi("Q"), mo(","), mi("K"), mo(","), mi("V"), mo(")"), mo("="),
      mi("softmax"), mo("("),
      frac(mrow(mi("Q"), sup(mi("K"), mi("T"))), sqrt(sub(mi("d"), mi("k")))), mo(")"), mi("V")),
    paragraph("kinds.same_formula"),
  ];
};

function maskPicture(kind, rows, columns) {
  const [width, height] = [48 * Math.min(1, columns / rows), 48 * Math.min(1, rows / columns)];
  const label = tell(kind === "decoder" ? "kinds.mask_causal" : "kinds.mask_none");
  const steps = 6;
  const hidden = (r, c) => kind === "decoder" && c > r;
  const cells = range(steps).flatMap((r) => range(steps).map((c) => svg("rect", {
    class: hidden(r, c) ? "cell masked" : "cell",
    "fill-opacity": hidden(r, c) ? null : 0.55,
    x: (c * width) / steps + 0.5,
    y: (r * height) / steps + 0.5,
    width: width / steps - 1,
    height: height / steps - 1,
  })));
  return h(
    "span",
    { class: "mask" },
    svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, cells),
    label,
  );
}
