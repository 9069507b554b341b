//! Rotary settings, in every spelling that configs have had.
//!
//! | what | old | in `rope_scaling` | in `rope_parameters` (transformers 5) |
//! |---|---|---|---|
//! | base | `rope_theta`, `rotary_emb_base` | `rope_theta` | `rope_theta` |
//! | part of the head that turns | `partial_rotary_factor`, `rotary_pct` | | `partial_rotary_factor` |
//! | scaling | | `rope_type`, `type` and its numbers | `rope_type` and its numbers |
//!
//! All that are present must agree.

use crate::config::Config;
use crate::error::ConvertError;
use tidbit_runtime::spec::{Pairs, Rotary, RotaryScaling};

/// What a family's rotary positions may be.
pub(super) struct Turning {
    /// The base by default.
    pub(super) theta: f64,
    /// How much of a head turns.
    pub(super) part: Part,
}

/// How much of a head turns.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// `partial_rotary_factor`, so much by default.
    Even(f64),
    /// The same, also called `rotary_pct`; an odd number of dimensions is one more, with the frequencies of the odd number.
    EvenOrOdd(f64),
}

/// Turns all of a head with a base of 10000.
pub(super) const WHOLE: Turning = Turning { theta: 10_000.0, part: Part::Whole };

/// Reads rotary positions from a config. `trained` is the trained length.
pub(super) fn rotary(
    config: &Config,
    head_dim: usize,
    trained: usize,
    turning: &Turning,
) -> Result<Rotary, ConvertError> {
    let (scaling, parameters) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
    if scaling.is_some() && parameters.is_some() {
        return Err(config.refuse("rope_parameters", "it to be absent beside `rope_scaling`"));
    }
    rotary_of(config, scaling.or(parameters), head_dim, trained, turning)
}

/// The same with the object that `config` has, if any.
pub(super) fn rotary_of(
    config: &Config,
    rope: Option<Config>,
    head_dim: usize,
    trained: usize,
    turning: &Turning,
) -> Result<Rotary, ConvertError> {
    let theta_names: &[_] = match turning.part {
        Part::EvenOrOdd(_) => &["rotary_emb_base", "rope_theta"],
        Part::Whole | Part::Even(_) => &["rope_theta"],
    };
    let theta = agreed(config, theta_names, rope.as_ref(), "rope_theta")?.unwrap_or(turning.theta) as f32;
    let (dims, exponent) = dims(config, rope.as_ref(), head_dim, turning.part)?;
    let scaling = rope.map(|rope| scaling_of(config, &rope, trained)).transpose()?.flatten();
    Ok(Rotary { dims, theta, exponent, pairs: Pairs::Halves, scaling })
}

/// A number outside and inside of the object; both must agree.
fn agreed(config: &Config, outside: &[&str], rope: Option<&Config>, inside: &str) -> Result<Option<f64>, ConvertError> {
    let outer = config.positive(outside)?;
    let Some(rope) = rope else { return Ok(outer) };
    match (rope.positive(&[inside])?, outer) {
        (Some(inner), Some(outer)) if inner.to_bits() != outer.to_bits() => {
            let name = outside.iter().find(|name| config.has(name)).copied().unwrap_or_default();
            Err(rope.refuse(inside, format!("the same as `{name}`, which is {outer}")))
        }
        (inner, outer) => Ok(inner.or(outer)),
    }
}

/// How many dimensions of a head turn, and the divisor of the exponents where it is not the same.
fn dims(
    config: &Config,
    rope: Option<&Config>,
    head_dim: usize,
    part: Part,
) -> Result<(usize, Option<usize>), ConvertError> {
    const FACTOR: &str = "partial_rotary_factor";
    let (names, default): (&[_], _) = match part {
        Part::EvenOrOdd(default) => (&["rotary_pct", FACTOR], default),
        Part::Even(default) => (&[FACTOR], default),
        Part::Whole => (&[FACTOR], 1.0),
    };
    let fraction = agreed(config, names, rope, FACTOR)?.unwrap_or(default);
    let dims = (head_dim as f64 * fraction) as usize;
    let name = names.first().copied().unwrap_or_default();
    let error = |expected: &str| {
        let turns = format!("`{name}` {fraction} of a head of {head_dim} turns {dims} dimensions");
        Err(config.error(format!("{turns}, expected {expected}")))
    };
    match part {
        Part::Whole if dims != head_dim => error("all of them"),
        _ if dims == 0 || dims > head_dim => error(&format!("2 to {head_dim}")),
        _ if dims.is_multiple_of(2) => Ok((dims, None)),
        Part::EvenOrOdd(_) if dims < head_dim => Ok((dims + 1, Some(dims))),
        _ => error(&format!("an even number from 2 to {head_dim}")),
    }
}

/// The scaling that an object asks for.
pub(super) fn scaling_of(
    config: &Config,
    rope: &Config,
    trained: usize,
) -> Result<Option<RotaryScaling>, ConvertError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let kind = rope.one_text(&["rope_type", "type"])?;
    let original = || Ok::<_, ConvertError>(rope.size(&[ORIGINAL])?.unwrap_or(trained));
    let scaling = match kind.as_deref() {
        None | Some("default") => None,
        Some("linear") => {
            rope.harmless(&[ORIGINAL]);
            Some(RotaryScaling::Linear { factor: rope.required("factor")? })
        }
        Some("dynamic") => {
            rope.expect_size(&[ORIGINAL], trained, "the trained length")?;
            Some(RotaryScaling::Dynamic { factor: rope.required("factor")?, original: trained })
        }
        Some("llama3") => Some(RotaryScaling::Llama3 {
            factor: rope.required("factor")?,
            low: rope.required("low_freq_factor")?,
            high: rope.required("high_freq_factor")?,
            original: original()?,
        }),
        Some("yarn") => {
            rope.harmless(&["finetuned"]);
            Some(yarn(rope, original()?)?)
        }
        Some(_) => {
            let name = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
            return Err(rope.refuse(name, "one of: default, linear, dynamic, llama3, yarn"));
        }
    };
    if let Some(unknown) = rope.finish()?.unknown.first() {
        let kind = kind.map_or_else(|| "without `rope_type`".into(), |kind| format!("of type {kind}"));
        return Err(config.error(format!("`{unknown}` is unknown in rotary positions {kind}, and may change them")));
    }
    Ok(scaling)
}

fn yarn(rope: &Config, original: usize) -> Result<RotaryScaling, ConvertError> {
    let factor = rope.positive(&["factor"])?.ok_or_else(|| rope.refuse("factor", "a positive number"))?;
    let number = |name: &str, default: f64| Ok::<_, ConvertError>(rope.positive(&[name])?.unwrap_or(default) as f32);
    // The logarithm's weight; no more than 1 where positions are not stretched.
    let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let (all, over) = (rope.positive(&["mscale"])?, rope.positive(&["mscale_all_dim"])?);
    let magnitude = match (rope.positive(&["attention_factor"])?, all, over) {
        (Some(given), ..) => given,
        (None, Some(all), Some(over)) => magnitude(all) / magnitude(over),
        // One alone has no effect.
        (None, ..) => magnitude(1.0),
    };
    Ok(RotaryScaling::Yarn {
        factor: factor as f32,
        beta_fast: number("beta_fast", 32.0)?,
        beta_slow: number("beta_slow", 1.0)?,
        original,
        magnitude: magnitude as f32,
        truncate: rope.bool("truncate", true)?,
    })
}
