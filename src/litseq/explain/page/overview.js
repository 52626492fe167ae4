// The sentence itself: what went in, what came out, how sure the model was, and its tokens.

/** What the reader has chosen; it outlives a change of language. */
const state = {
  sentence: 0,
  words: false,
  cell: { position: 3, pair: 2 },
  map: { kind: null, layer: 0, head: 0, norms: false },
  head: { index: null, query: null, key: null, dimension: 0, other: false },
  output: { step: 0 },
  alignment: { layer: -1, head: -1 },
  scores: { step: null, key: null },
};

/** A word without SentencePiece's mark of its beginning. */
const wordText = (pieces) => pieces.join("").replaceAll(WORD_MARK, " ").trim() || pieces.join("");

/** One side of the sentence as the reader wants it: {labels, words, whole}. */
function sideOf(tokens, words) {
  if (!state.words) return { labels: tokens.map(visible), words: range(tokens.length) };
  const labels = groups(words).map((pieces) => visible(wordText(pieces.map((i) => tokens[i]))));
  return { labels, words };
}

// What the decoder reads is one token behind what it writes: the beginning first.
const readWords = ({ tgt }) => [
  0,
  ...tgt.words.slice(0, -1).map((word) => word - tgt.words[0] + 1),
];
const sides = {
  encoder: ({ src }) => [sideOf(src.tokens, src.words), sideOf(src.tokens, src.words)],
  decoder: (sentence) => {
    const side = sideOf(sentence.tgt_in.tokens, readWords(sentence));
    return [side, side];
  },
  cross: ({ src, tgt }) => [sideOf(tgt.tokens, tgt.words), sideOf(src.tokens, src.words)],
};

const textLine = (key, text, lang) =>
  [h("dt", {}, tell(key)), h("dd", { lang, dir: "auto", class: "sentence" }, visible(text))];

parts.overview = function drawOverview(sentence) {
  const { src_lang: from, tgt_lang: to } = record.model;
  const texts = h("dl", { class: "texts" },
    textLine("overview.source", sentence.source, from),
    textLine(sentence.forced ? "overview.given" : "overview.output", sentence.output, to),
    sentence.reference === null ? null : textLine("overview.reference", sentence.reference, to));

  const pieces = groups(state.words ? sentence.tgt.words : range(sentence.tgt.tokens.length));
  const shown = pieces.map((group) => ({
    label: state.words ? wordText(
      group.map((i) => sentence.tgt.tokens[i]),
    ) : sentence.tgt.tokens[group[0]],
    prob: group.reduce((product, i) => product * sentence.steps[i].prob, 1),
  }));
  const chips = h("ol", { class: "probabilities", "aria-label": tell("overview.sure") },
    shown.map(({ label, prob }) => h("li", {}, token(label, 18), bar(prob), percent(prob))));

  const total = [note("overview.total", {
    sum: number(sum(sentence.steps.map((step) => Math.log(step.prob))), 4),
    forced: number(sentence.log_prob, 4),
  })];
  if (sentence.search_log_prob !== null) {
    const same = Math.abs(sentence.search_log_prob - sentence.log_prob) < 1e-3;
    total.push(note(same ? "overview.same" : "overview.not_same", {
      search: number(sentence.search_log_prob, 4),
      forced: number(sentence.log_prob, 4),
    }, { class: same ? "note good" : "note bad" }));
  }
  const questions = lookUp(`overview.questions_${record.model.architecture}`);
  return [
    texts,
    subheading("overview.sure"),
    paragraph("overview.sure_text"),
    chips,
    total,
    sentence.finished === false ? note("overview.unfinished") : null,
    subheading("overview.questions"),
    h(
      "ul",
      { class: "questions" },
      questions.map(({ to: id, text }) => h("li", {}, h("a", { href: `#${id}` }, text))),
    ),
  ];
};

function tokenTable(caption, tokens, ids, words, extra = {}) {
  return table({
    caption,
    className: "compact",
    rowHeads: true,
    head: [
      tell("tokens.place"),
      tell("tokens.token"),
      tell("tokens.id"),
      ...(words ? [tell("tokens.word")] : []),
      ...(extra.head ?? []),
    ],
    rows: tokens.map(
      (text, i) => [
        String(i),
        token(text),
        String(ids[i]),
        ...(words ? [String(words[i] + 1)] : []),
        ...(extra.row?.(i) ?? []),
      ],
    ),
  });
}

parts.tokens = function drawTokens({ src, tgt, tgt_in: read }) {
  const chips = (tokens, ids) => h("ol", { class: "tokens" }, tokens.map((text, i) =>
    h("li", {}, token(text, 24), h("span", { class: "id" }, String(ids[i])))));
  return [
    subheading("tokens.source", { count: String(src.tokens.length) }),
    chips(src.tokens, src.ids),
    subheading("tokens.read", { count: String(read.tokens.length) }),
    chips(read.tokens, read.ids),
    subheading("tokens.written", { count: String(tgt.tokens.length) }),
    chips(tgt.tokens, tgt.ids),
    note("tokens.shift"),
    details(tell("common.as_table"), () => [
      tokenTable(
        tell("tokens.source", { count: String(src.tokens.length) }),
        src.tokens,
        src.ids,
        src.words,
      ),
      tokenTable(tell("tokens.shifted"), read.tokens, read.ids, null, {
        head: [tell("tokens.writes"), tell("tokens.id")],
        row: (i) => [token(tgt.tokens[i]), String(tgt.ids[i])],
      }),
    ]),
  ];
};
