//! Guesses change nothing but the time: the same tokens with and without, whatever the sampler, however good the guesses.

mod cli_support;

use cli_support::{checkpoint, json, run, scratch, succeeds};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use tidbit_convert::{Checkpoint, Options, convert};
use tidbit_runtime::error::SessionError;
use tidbit_runtime::quant::QuantType;
use tidbit_runtime::sampler::{Sampler, SamplerOptions};
use tidbit_runtime::session::{Model, Session, SessionOptions};
use tidbit_runtime::speculate::{DraftModel, Drafter, Guess, Lookup, MAX_GUESSES, Steps};

const PROMPT: &str = "The king said: I will go. The queen said: I will go. The king said:";

fn model(name: &str, quant: QuantType) -> Model {
    let folder = scratch();
    let output = folder.path().join("model.tidbit");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    let checkpoint = Checkpoint::open(&source).unwrap();
    convert(&checkpoint, &output, &Options { quant, cancel: None }, &mut ()).unwrap();
    Model::open(&output).unwrap()
}

fn options(context: Option<usize>) -> SessionOptions {
    SessionOptions { context, threads: Some(2), ..SessionOptions::default() }
}

fn greedy() -> SamplerOptions {
    SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }
}

fn prompt(model: &Model) -> Vec<u32> {
    model.tokenizer().unwrap().unwrap().encode(PROMPT).unwrap()
}

/// Decodes `n` tokens, or to the end of the context, and a few more after an interruption.
fn decode(session: &mut Session, sampler: &SamplerOptions, steps: &mut Steps, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampler.clone()).unwrap();
    let mut text = prompt.to_vec();
    session.rewind(0);
    // The text is stopped once in the middle, wherever the step then stands, and goes on with words from outside.
    for (goal, addition) in [(n / 2 + 1, &[5, 9, 5][..]), (n, &[])] {
        while text.len() < prompt.len() + goal && session.position() < session.context() {
            let most = prompt.len() + goal - text.len();
            let before = text.len();
            let step = steps.step(session, &mut sampler, &mut text, most, |_| ControlFlow::Continue::<()>(()));
            assert_eq!(step.unwrap(), ControlFlow::Continue(()));
            assert!(text.len() > before && text.len() <= before + most);
            assert_eq!(session.position(), text.len() - 1);
        }
        if session.position() + addition.len() < session.context() {
            text.extend(addition);
        }
    }
    text
}

/// Knows the text, and errs now and then, so that any number of guesses is right.
struct Oracle {
    truth: Vec<u32>,
    at: usize,
    guessed: usize,
}

impl Drafter for Oracle {
    fn extend(&mut self, new: &[u32]) {
        self.at += new.len();
        self.guessed = 0;
    }

    fn guess(&mut self) -> Result<Option<Guess>, SessionError> {
        let at = self.at + self.guessed;
        self.guessed += 1;
        let wrong = at % 7 == 3 || at % 11 == 2;
        let right = |&id: &u32| if wrong { id ^ 1 } else { id };
        Ok(self.truth.get(at).map(right).map(|id| Guess { id, confidence: 0.95 }))
    }

    fn clear(&mut self) {
        (self.at, self.guessed) = (0, 0);
    }
}

fn oracle(truth: &[u32]) -> Oracle {
    Oracle { truth: truth.to_vec(), at: 0, guessed: 0 }
}

/// A drafter whose guesses cost nothing, so that they are run.
struct Free<D>(D);

impl<D: Drafter> Drafter for Free<D> {
    fn extend(&mut self, new: &[u32]) {
        self.0.extend(new);
    }
    fn guess(&mut self) -> Result<Option<Guess>, SessionError> {
        self.0.guess()
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

#[test]
fn the_text_is_the_same_with_and_without_guesses() {
    let samplers = [
        greedy(),
        SamplerOptions { repeat_penalty: 1.3, ..greedy() },
        SamplerOptions { seed: 1, ..SamplerOptions::default() },
        SamplerOptions {
            seed: 2,
            temperature: 0.4,
            repeat_penalty: 0.9,
            repeat_last_n: 9,
            ..SamplerOptions::default()
        },
        SamplerOptions { seed: 3, temperature: 1.3, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() },
    ];
    let draft = model("gpt2-mini", QuantType::Q4);
    for name in ["gpt2-mini", "neox-mini"] {
        for quant in [QuantType::F32, QuantType::Q8, QuantType::Q4] {
            let model = model(name, quant);
            let prompt = prompt(&model);
            // Some texts end by themselves, others with the context.
            for (sampler, context) in samplers.iter().zip([200, 60, 200, 60, 200]) {
                let mut session = Session::new(&model, &options(Some(context))).unwrap();
                let mut run = |mut steps: Steps| {
                    let text = decode(&mut session, sampler, &mut steps, &prompt, 60);
                    (text, steps.statistics())
                };
                let (expected, none) = run(Steps::new());
                assert!(none.is_none());
                let (text, oracle) = run(Steps::speculating(Box::new(oracle(&expected)), 9));
                assert_eq!(text, expected, "{name} {quant} {sampler:?}, guesses that are often right");
                let oracle = oracle.unwrap();
                assert!(oracle.accepted > 10 && oracle.accepted < oracle.guessed, "{oracle:?}");
                let (text, _) = run(Steps::speculating(Box::new(Lookup::new()), MAX_GUESSES));
                assert_eq!(text, expected, "{name} {quant} {sampler:?}, guesses from the text");
                let drafter = Free(DraftModel::new(&draft, &options(Some(100)), &model).unwrap());
                let (text, drafted) = run(Steps::speculating(Box::new(drafter), 5));
                assert_eq!(text, expected, "{name} {quant} {sampler:?}, guesses of a smaller model");
                assert!(drafted.unwrap().guessed > 0);
            }
        }
    }
}

#[test]
fn text_that_repeats_takes_fewer_steps_than_tokens() {
    let model = model("gpt2-mini", QuantType::Q8);
    let mut session = Session::new(&model, &options(None)).unwrap();
    let mut steps = Steps::speculating(Box::new(Lookup::new()), 15);
    let prompt = prompt(&model);
    decode(&mut session, &greedy(), &mut steps, &prompt, 120);
    let statistics = steps.statistics().unwrap();
    assert!(statistics.tokens_per_step().unwrap() > 1.8, "{statistics:?}");
    assert!(statistics.accepted > statistics.guessed / 2, "{statistics:?}");
}

#[test]
fn a_model_that_drafts_for_itself_is_mostly_right() {
    let model = model("neox-mini", QuantType::Q8);
    let mut session = Session::new(&model, &options(None)).unwrap();
    let drafter = Free(DraftModel::new(&model, &options(None), &model).unwrap());
    let mut steps = Steps::speculating(Box::new(drafter), 4);
    let prompt = prompt(&model);
    decode(&mut session, &greedy(), &mut steps, &prompt, 60);
    let statistics = steps.statistics().unwrap();
    assert!(statistics.guessed > 30 && statistics.accepted == statistics.guessed, "{statistics:?}");
}

#[test]
fn a_text_that_is_ended_goes_on_as_if_it_had_had_no_guesses() {
    let model = model("gpt2-mini", QuantType::Q8);
    let sampler = SamplerOptions { seed: 4, temperature: 0.3, ..SamplerOptions::default() };
    let mut session = Session::new(&model, &options(None)).unwrap();
    let expected = decode(&mut session, &sampler, &mut Steps::new(), &prompt(&model), 60);
    let n_prompt = prompt(&model).len();
    for end in 1..12 {
        let texts = [Steps::new(), Steps::speculating(Box::new(oracle(&expected)), 9)].map(|mut steps| {
            session.rewind(0);
            let mut sampler = Sampler::new(sampler.clone()).unwrap();
            let mut text = prompt(&model);
            let mut chosen = 0;
            for addition in [&[][..], &[7, 7]] {
                text.extend(addition);
                let goal = chosen + end;
                while chosen < goal {
                    let ended = steps.step(&mut session, &mut sampler, &mut text, usize::MAX, |_| {
                        chosen += 1;
                        if chosen == goal { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    });
                    assert_eq!(ended.unwrap().is_break(), chosen == goal);
                    assert_eq!(session.position(), text.len() - 1);
                }
            }
            text
        });
        assert_eq!(texts[0].len(), n_prompt + 2 * end + 2);
        assert_eq!(texts[0], texts[1], "ended after {end} tokens");
    }
}

/// Counts what it is asked, and guesses what cannot be right.
struct Wrong(Rc<Cell<usize>>);

impl Drafter for Wrong {
    fn extend(&mut self, _: &[u32]) {}
    fn guess(&mut self) -> Result<Option<Guess>, SessionError> {
        self.0.set(self.0.get() + 1);
        Ok(Some(Guess { id: 3583, confidence: 0.99 }))
    }
    fn clear(&mut self) {}
    fn cost(&self) -> f32 {
        0.2
    }
}

#[test]
fn a_drafter_that_errs_is_asked_less_and_less() {
    let model = model("gpt2-mini", QuantType::Q8);
    let mut session = Session::new(&model, &options(None)).unwrap();
    let asked = Rc::new(Cell::new(0));
    let mut steps = Steps::speculating(Box::new(Wrong(Rc::clone(&asked))), 8);
    decode(&mut session, &greedy(), &mut steps, &prompt(&model), 300);
    let statistics = steps.statistics().unwrap();
    assert_eq!(statistics.accepted, 0);
    assert!(statistics.steps > 290 && asked.get() < 100, "asked {} times, {statistics:?}", asked.get());
}

#[test]
fn logits_of_the_last_tokens_are_those_of_all() {
    let model = model("neox-mini", QuantType::Q4);
    let mut session = Session::new(&model, &options(None)).unwrap();
    // Three batches, the last of them short.
    let ids: Vec<u32> = (0..259u32).map(|i| i * 7919 % 3584).collect();
    let mut all = Vec::new();
    session.append_each(&ids, |_, logits| all.push(logits.to_vec())).unwrap();
    for n in [1, 2, 3, 4, 30, 128] {
        session.rewind(0);
        let logits = session.append_last(&ids, n).unwrap();
        assert_eq!(logits.len(), n);
        for row in 0..n {
            assert!(logits.row(row) == all[ids.len() - n + row], "row {row} of {n}");
        }
    }
    session.rewind(0);
    for (ids, n, most) in [(&ids[..], 129, "128"), (&ids[..3], 4, "3")] {
        let error = session.append_last(ids, n).err().unwrap().to_string();
        assert!(error.contains(&n.to_string()) && error.contains(most), "{error}");
        assert_eq!(session.position(), 0);
    }
}

#[test]
fn the_command_writes_the_same_text() {
    let args = ["-p", PROMPT, "-n", "80", "--seed", "5", "--temperature", "0.3"];
    let expected = succeeds(&mut run(args)).stdout;
    let checkpoint = checkpoint();
    let draft = ["--draft", checkpoint.to_str().unwrap()];
    for speculation in [&["--speculate", "lookup"][..], &["--speculate", "lookup:2"], &draft] {
        let written = succeeds(run(args).args(speculation));
        assert_eq!(written.stdout, expected, "{speculation:?}");
        assert!(written.stderr.contains("guesses right"), "{}", written.stderr);
    }
    let plain = json(run(args).arg("--json"));
    assert!(plain["speculation"].is_null());
    let value = json(run(args).args(["--speculate", "lookup", "--json"]));
    assert_eq!(value["ids"], plain["ids"]);
    let number = |field: &str| value["speculation"][field].as_u64().unwrap();
    assert_eq!(number("steps") + number("accepted") + 1, 80, "{value}");
    assert!(number("guessed") >= number("accepted"), "{value}");
}
