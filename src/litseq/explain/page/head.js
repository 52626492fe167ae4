// One head's arithmetic for one word, from q, k and v to the weighted sum.

/** The pieces that ask and the pieces that are asked; this arithmetic knows no words. */
const piecesOf = {
  encoder: ({ src }) => [src.tokens, src.tokens],
  decoder: ({ tgt_in: read }) => [read.tokens, read.tokens],
  cross: ({ src, tgt }) => [tgt.tokens, src.tokens],
};

/** Everything that the panel shows, computed once from q, k and v of the record. */
function workHead(detail, head, query, other) {
  const [q, k, v] = [vector(head.q, query), rowsOf(head.k), rowsOf(head.v)];
  const root = Math.sqrt(detail.d_k);
  const own = 1 / detail.scale;
  // a model that was trained without the division shows what the division would do
  const divisors = { own, other: Math.abs(own - 1) < 1e-9 ? root : 1 };
  const masked = k.map((_, key) => head.kind === "decoder" && key > query);
  const products = k.map((vectorOfKey) => dot(q, vectorOfKey));
  const weigh = (divisor) => softmax(products.map((x, key) => (masked[key] ? null : x / divisor)));
  const ways = { own: weigh(divisors.own), other: weigh(divisors.other) };
  const way = other ? "other" : "own";
  const { weights } = ways[way];
  const output = v[0].map((_, d) => sum(weights.map((weight, key) => weight * v[key][d])));
  return {
    q, k, v, products, masked, divisors, ways, output, root,
    divisor: divisors[way], softmax: ways[way],
    ownWeights: vector(head.weights, query), ownOutput: vector(head.output, query),
  };
}

/** All dot products of a head that its mask lets it use. */
function allProducts(head) {
  const [q, k] = [rowsOf(head.q), rowsOf(head.k)];
  return q.flatMap(
    (a, row) => k.filter((_, key) => head.kind !== "decoder" || key <= row).map((b) => dot(a, b)),
  );
}


/** The query to begin with: a word, not a full stop, that looks at one place most, but not only. */
function tellingQuery(head, queries) {
  const telling = queries.map((text, query) =>
    /\p{L}/u.test(text) && !text.startsWith("<") ? 1 - Math.abs(
      0.6 - Math.max(...vector(head.weights, query)),
    ) : 0);
  return argmax(telling);
}

/** Places of the heads in the order of the network, whatever the record's. */
const inOrder = (heads) => {
  const kinds = ["encoder", "decoder", "cross"];
  const place = ({ kind, layer, head }) => 1e6 * kinds.indexOf(kind) + 1e3 * layer + head;
  return range(heads.length).sort((a, b) => place(heads[a]) - place(heads[b]));
};

parts.head = function drawHead(sentence) {
  const { detail } = sentence;
  if (detail.heads.length === 0) return [note("head.absent")];
  const chosen = state.head;
  if (chosen.index === null || chosen.index >= detail.heads.length) {
    chosen.index = defaultHead(detail);
  }
  const head = detail.heads[chosen.index];
  const [queries, keys] = piecesOf[head.kind](sentence);
  chosen.query = clamp(chosen.query ?? tellingQuery(head, queries), 0, queries.length - 1);
  if (
    chosen.key === null || chosen.key >= keys.length
  ) chosen.key = argmax(vector(head.weights, chosen.query));
  chosen.dimension = clamp(chosen.dimension, 0, detail.d_k - 1);

  const steps = h("ol", { class: "steps" });
  const update = () => {
    const numbers = workHead(detail, head, chosen.query, chosen.other);
    const panel = { detail, head, queries, keys, numbers, chosen, update };
    const focused = document.activeElement?.dataset?.focus;
    steps.replaceChildren(...[
      stepVectors,
      stepProduct,
      stepSoftmax,
      stepDivision,
      stepSum,
      stepJoin,
    ].map((step) =>
      h("li", {}, step(panel))));
    // the control that was used is drawn anew: keep the keyboard where it was
    if (focused) steps.querySelector(`[data-focus="${focused}"]`)?.focus();
  };
  const heads = dropdown({
    label: tell("head.which"),
    options: detail.heads.map((item) => headName(item.kind, item.layer, item.head)),
    order: inOrder(detail.heads),
    selected: chosen.index,
    onchange: (index) => {
      Object.assign(chosen, { index, query: null, key: null });
      redraw("head").querySelector("select").focus();
    },
  });
  const words = choice({
    legend: tell(`head.word_${head.kind}`), name: "query", style: "chips", selected: chosen.query,
    options: queries.map((text) => token(text, 16)),
    onchange: (query) => {
      Object.assign(chosen, { query, key: argmax(vector(head.weights, query)) });
      update();
    },
  });
  const own = Math.abs(detail.scale - 1) > 1e-9;
  const division = toggle({
    label: say(own ? "head.without" : "head.with", { root: short(Math.sqrt(detail.d_k)) }),
    checked: chosen.other,
    onchange: (on) => { chosen.other = on; update(); },
  });
  update();
  return [
    h("div", { class: "controls" }, heads.element),
    words.element,
    h("div", { class: "controls sticky" }, division),
    own ? null : note("head.undivided_model"),
    steps,
  ];
};

const dimensions = (count) => ({ dk: String(count) });

function stepVectors({ detail, head, queries, keys, numbers, chosen }) {
  const { q, k, v } = numbers;
  const shown = [
    ["q", q, queries[chosen.query]],
    ["k", k[chosen.key], keys[chosen.key]],
    ["v", v[chosen.key], keys[chosen.key]],
  ];
  const most = largestSize(shown.flatMap(([, values]) => values));
  return [
    subheading("head.vectors"),
    h(
      "p",
      {},
      say(
        `head.vectors_${head.kind}`,
        { ...dimensions(detail.d_k), token: token(queries[chosen.query]) },
      ),
    ),
    h("div", {
      class: "vectors",
    }, shown.map(([letter, values, text]) => h("div", { class: `vector ${letter}` },
      h("span", { class: "letter" }, letter),
      h("span", { class: "of" }, say("head.of", { token: token(text, 16) })),
      signedBars(values, most, { label: tell("head.strip", { letter, token: spoken(text) }) }),
      h(
        "span",
        { class: "numbers" },
        values.slice(0, 4).flatMap((x) => [number(x, 3), "  "]),
        "\u2026",
      )))),
    note("common.bars", { most: format(most, 2) }),
    details(tell("head.all", dimensions(detail.d_k)), () => table({
      caption: tell("head.vectors"),
      className: "compact",
      head: [
        tell("positions.dimension"),
        ...shown.map(([letter, , text]) => h("span", {}, `${letter} `, token(text, 16))),
      ],
      rows: range(detail.d_k).map(
        (d) => [String(d), ...shown.map(([, values]) => number(values[d], 4))],
      ),
    })),
  ];
}

function stepProduct({ detail, queries, keys, numbers, chosen }) {
  const { q, k, products } = numbers;
  const key = k[chosen.key];
  const terms = q.map((x, d) => x * key[d]);
  const shown = Math.min(5, terms.length);
  const parts = range(shown).flatMap((d) => [
    d ? " + " : "", h(
      "span",
      { class: "term" },
      number(q[d], 3, factor(q[d])),
      " \u00d7 ",
      number(key[d], 3, factor(key[d])),
    ),
  ]);
  let running = 0;
  return [
    subheading("head.product"),
    paragraph("head.product_text", dimensions(detail.d_k)),
    h("p", { class: "written" },
      h(
        "span",
        { class: "lead-in" },
        "q(",
        token(queries[chosen.query], 16),
        ") \u00b7 k(",
        token(keys[chosen.key], 16),
        ") = ",
      ),
      parts, shown < terms.length ? " + \u2026 = " : " = ",
      h("strong", {}, number(products[chosen.key], 3))),
    details(tell("head.terms", dimensions(detail.d_k)), () => table({
      caption: tell(
        "head.terms_caption",
        { query: spoken(queries[chosen.query]), key: spoken(keys[chosen.key]) },
      ),
      className: "compact terms",
      head: [tell("positions.dimension"), "q", "k", "q \u00d7 k", tell("head.so_far")],
      rows: terms.map(
        (term, d) => [
          String(d),
          number(q[d], 4),
          number(key[d], 4),
          number(term, 4),
          number((running += term), 4),
        ],
      ),
      foot: [[tell("head.sum"), "", "", "", number(products[chosen.key], 4)]],
    })),
  ];
}

function stepSoftmax({ detail, head, keys, numbers, chosen, update }) {
  const { products, masked, softmax: result, divisor, ownWeights, root } = numbers;
  const divided = Math.abs(divisor - 1) > 1e-9;
  const causal = head.kind === "decoder";
  const columns = [
    tell("head.key"), "q \u00b7 k",
    ...(
      divided ? [
        h(
          "span",
          {},
          "\u00f7 ",
          radical(h("var", {}, "d", h("sub", {}, "k"))),
          ` = ${short(divisor)}`,
        ),
      ] : []
    ),
    ...(causal ? [tell("head.mask")] : []),
    "exp", tell("head.weight"), "",
  ];
  const rows = keys.map((text, key) => {
    const pick = h("button", {
      type: "button", class: "link", "aria-pressed": String(key === chosen.key), dataset: {
        focus: `key-${key}`,
      },
      "aria-label": tell("head.pick", { token: spoken(text) }),
      onclick: () => { chosen.key = key; update(); },
    }, token(text, 16));
    const hidden = masked[key];
    return h("tr", {
      class: [key === chosen.key ? "current" : "", hidden ? "hidden-key" : ""].join(" "),
      dataset: { key },
    },
      h("th", { scope: "row" }, pick),
      h("td", {}, number(products[key], 3)),
      divided ? h("td", {}, number(products[key] / divisor, 3)) : null,
      causal ? h("td", {}, hidden ? "\u2212\u221e" : "\u2713") : null,
      h("td", {}, hidden ? number(0, 0, "0") : wide(result.exps[key])),
      h("td", { class: "weight" }, number(result.weights[key], 4)),
      h("td", { class: "bar-cell" }, bar(result.weights[key])));
  });
  const span = 2 + Number(divided) + Number(causal);
  const foot = h(
    "tr",
    {},
    h("th", { scope: "row", colspan: span }, tell("head.sum")),
    h("td", {}, wide(result.total)),
    h("td", {}, number(sum(result.weights), 4)),
    h("td"),
  );
  const [exp, weight] = [result.exps[chosen.key], result.weights[chosen.key]];
  const causalNote = causal ? paragraph("head.mask_text") : null;
  const difference = largestDifference(result.weights, ownWeights);
  return [
    subheading(divided ? "head.softmax" : "head.softmax_undivided"),
    divided ? h(
      "p",
      {},
      say("head.softmax_text", { root: formulaRoot(detail.d_k, root), dk: String(detail.d_k) }),
    ) : paragraph("head.softmax_undivided_text"),
    causalNote,
    result.shift ? note("head.shift", { shift: number(result.shift, 2) }) : null,
    table({ caption: tell("head.table"), className: "scores", head: columns, rows, foot: [foot] }),
    formula(mi(tell("head.weight").toLowerCase()), mo("("), math(
      "mtext",
      clip(visible(unmarked(keys[chosen.key])), 16),
    ), mo(")"), mo("="),
      frac(mn(formatWide(exp)), mn(formatWide(result.total))), mo("="), mv(weight, 4)),
    note(
      chosen.other ? "head.not_own_weights" : "head.own_weights",
      { difference: wide(difference) },
      { class: chosen.other ? "note" : difference < 1e-4 ? "note good" : "note bad" },
    ),
  ];
}

const formulaRoot = (dk, value) => h("span", {}, radical(String(dk)), ` = ${short(value)}`);

function stepDivision({ detail, head, keys, numbers }) {
  const { ways, divisors, root } = numbers;
  const all = allProducts(head);
  const spread = variance(all);
  const divided = divisors.own === 1 ? "other" : "own";
  const plain = divided === "own" ? "other" : "own";
  const card = (way, title) => {
    const { weights } = ways[way];
    return h("div", { class: "way", dataset: { way: way === divided ? "divided" : "plain" } },
      h("h4", {}, title),
      h(
        "ul",
        { class: "bars" },
        weights.map(
          (weight, key) => h(
            "li",
            {},
            token(keys[key], 10),
            bar(weight),
            h("span", {}, number(weight, 2)),
          ),
        ),
      ),
      h("dl", { class: "facts" },
        h("dt", {}, tell("attention.entropy")), h("dd", {}, number(entropy(weights), 3)),
        h("dt", {}, tell("attention.largest")), h("dd", {}, number(Math.max(...weights), 3))));
  };
  return [
    subheading("head.why", { root: formulaRoot(detail.d_k, root) }),
    paragraph("head.why_text", dimensions(detail.d_k)),
    h("p", { class: "data-line" }, say("head.variance", {
      count: String(all.length), raw: number(spread, 2), scaled: number(
        spread / detail.d_k,
        3,
      ), ...dimensions(detail.d_k),
    })),
    h("div", { class: "ways" },
      card(divided, say("head.divided", { root: formulaRoot(detail.d_k, root) })),
      card(plain, tell("head.plain"))),
    paragraph("head.why_saturates"),
  ];
}

function stepSum({ detail, keys, numbers, chosen, update }) {
  const { v, softmax: { weights }, output, ownOutput } = numbers;
  const d = chosen.dimension;
  const heavy = range(keys.length).filter((key) => weights[key] >= 0.02);
  const mostOut = largestSize(
    [...output, ...heavy.flatMap((key) => v[key].map((x) => x * weights[key]))],
  );
  const parts = range(keys.length).filter((key) => weights[key] > 0).flatMap((key, i) => [
    i ? " + " : "", h(
      "span",
      { class: "term" },
      number(weights[key], 3),
      " \u00d7 ",
      number(v[key][d], 3, factor(v[key][d])),
    ),
  ]);
  const difference = largestDifference(output, ownOutput);
  const dimensionText = tell(
    "head.dimension_value",
    { d: String(d), last: String(detail.d_k - 1) },
  );
  const dimension = h("input", {
    type: "range", min: 0, max: detail.d_k - 1, value: d, dataset: { focus: "dimension" },
    "aria-valuetext": dimensionText,
    oninput: () => { chosen.dimension = Number(dimension.value); update(); },
  });
  const verdict = chosen.other ? note("head.not_own_output") : note("head.own_output", {
    own: number(ownOutput[d], 4), difference: wide(difference), ...dimensions(detail.d_k),
  }, { class: difference < 1e-4 ? "note good" : "note bad" });
  return [
    subheading("head.weighted"),
    paragraph("head.weighted_text"),
    h("div", { class: "vectors" },
      heavy.map((key) => h("div", { class: "vector v" },
        h("span", { class: "letter" }, number(weights[key], 2)),
        h("span", { class: "of" }, "\u00d7 v(", token(keys[key], 12), ")"),
        signedBars(v[key].map((x) => x * weights[key]), mostOut, { mark: d }))),
      h("div", { class: "vector out" },
        h("span", { class: "letter" }, "\u03a3"),
        h("span", { class: "of" }, tell("head.output")),
        signedBars(output, mostOut, { mark: d, label: tell("head.output") }))),
    note("common.bars", { most: format(mostOut, 2) }),
    h("div", {
      class: "controls",
    }, h("label", { class: "field" }, h("span", {}, tell("head.dimension")), dimension,
      h("output", {}, dimensionText))),
    h("p", { class: "written weighted" }, parts, " = ", h("strong", {}, number(output[d], 4))),
    verdict,
    details(tell("head.all_outputs", dimensions(detail.d_k)), () => table({
      caption: tell("head.weighted"),
      className: "compact",
      head: [tell("positions.dimension"), tell("head.computed"), tell("head.models_own")],
      rows: output.map((x, i) => [String(i), number(x, 6), number(ownOutput[i], 6)]),
    })),
  ];
}

function stepJoin({ detail, head }) {
  const { d_model: dModel, d_k: dk } = detail;
  const count = record.model.options.num_heads ?? dModel / dk;
  return [
    subheading("head.join"),
    paragraph(
      "head.join_text",
      { count: String(count), dk: String(dk), size: String(dModel), layer: String(head.layer + 1) },
    ),
  ];
}
