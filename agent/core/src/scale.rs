//! Owns: scaling policies (`product.md`), decisions over them, forecasts, and the simulator that replays a trace. May touch:
//! nothing. Never: leaves a policy's bounds, or asks a clock. Tested by: units and properties in `scale/`.
//!
//! Times of decisions are milliseconds of a clock that only goes forward and that the caller keeps ([`Memory`]), so that a
//! host whose clock is set neither shortens a cool-down nor hangs in one.

mod decide;
mod forecast;
mod simulate;

pub use decide::{Basis, Decision, Held, HeldBy, Measure, Memory, Signals, Step, Verdict, decide};
pub use forecast::{BUCKET_SECONDS, Bucket, Forecast, HISTORY_BUCKETS, History, Trial, trial};
pub use simulate::{Point, Replay, Server, Simulated, Tick, TraceError, read_trace, simulate};

use serde::{Deserialize, Serialize};
use sigil_config::manifest::{Manifest, Scaling, ScalingPolicy, ScalingWeights};

/// The preset over which a policy is written that names none.
pub const DEFAULT: &str = "router";
/// Idle time after which a deployment sleeps that may and does not say when, seconds.
const IDLE: u32 = 900;
/// Steps up of a policy that does not say, replicas.
const STEP_UP: u32 = 4;

/// How deep a deployment sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Chosen from memory pressure and how often it is woken.
    #[default]
    Auto,
    /// Frozen: wakes in milliseconds, keeps its memory as far as the kernel cannot reclaim it.
    Paused,
    /// Stopped: costs nothing, wakes as fast as it starts.
    Stopped,
}

impl Depth {
    /// The word in manifests and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// How several targets make one decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Up when any is above its target, down when all are 20 points below.
    #[default]
    Single,
    /// One score of all: up above 0.7, down below 0.3.
    Weighted,
}

impl Mode {
    /// The word in manifests and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Weighted => "weighted",
        }
    }
}

/// Shares of a score. Those of measures without a target fall to the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Weights {
    /// Of CPU.
    pub cpu: f64,
    /// Of memory.
    pub memory: f64,
    /// Of the response time.
    pub response_time: f64,
    /// Of errors.
    pub errors: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { cpu: 0.4, memory: 0.3, response_time: 0.2, errors: 0.1 }
    }
}

/// How a deployment is scaled: a preset with what was written over it, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// The preset that it comes from.
    pub preset: String,
    /// Fewest replicas; 0: it may sleep, awake it has at least one.
    pub min: u32,
    /// Most replicas.
    pub max: u32,
    /// Target for CPU, percent of a replica's hard limit.
    pub cpu: Option<f64>,
    /// Target for memory above the baseline, percent of a replica's limit.
    pub memory: Option<f64>,
    /// Target for the 95th percentile of response times, milliseconds.
    pub response_time: Option<u64>,
    /// Target for calls that fail, percent.
    pub error_rate: Option<f64>,
    /// Up above so many requests a minute a replica.
    pub requests_up: Option<f64>,
    /// Down below so many.
    pub requests_down: Option<f64>,
    /// Shortest time from a step to the next one up, seconds.
    pub up_cooldown: u32,
    /// Shortest time from a step to the next one down, seconds.
    pub down_cooldown: u32,
    /// Time between evaluations, seconds.
    pub evaluate_every: u32,
    /// Down only to what was the most that was asked for in this time, seconds.
    pub stabilisation: u32,
    /// Most replicas that a step adds.
    pub step_up: u32,
    /// Most replicas that a step takes away.
    pub step_down: u32,
    /// How targets make one decision.
    pub mode: Mode,
    /// Shares of the score of [`Mode::Weighted`].
    pub weights: Weights,
    /// Whether the next hour's need is taken from the last seven days, and it is woken before its calls come.
    pub predictive: bool,
    /// Most that a step may add to the cost of an hour, in the currency of the rates.
    pub cost_cap: Option<f64>,
    /// Idle time after which it sleeps, seconds; 0: never.
    pub idle_timeout: u32,
    /// How deep it sleeps.
    pub sleep: Depth,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            preset: DEFAULT.to_owned(),
            min: 0,
            max: 3,
            cpu: Some(40.0),
            memory: Some(60.0),
            response_time: None,
            error_rate: None,
            requests_up: Some(50.0),
            requests_down: Some(10.0),
            up_cooldown: 30,
            down_cooldown: 300,
            evaluate_every: 30,
            stabilisation: 60,
            step_up: STEP_UP,
            step_down: 1,
            mode: Mode::Single,
            weights: Weights::default(),
            predictive: false,
            cost_cap: None,
            idle_timeout: IDLE,
            sleep: Depth::Auto,
        }
    }
}

/// What is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No such preset.
    #[error("there is no scaling preset '{0}'")]
    Preset(String),
    /// Bounds that exclude each other.
    #[error("scaling: min ({min}) is above max ({max})")]
    Bounds {
        /// Fewest replicas.
        min: u32,
        /// Most replicas.
        max: u32,
    },
    /// Thresholds that exclude each other.
    #[error("scaling: requestsDown ({down}) is not below requestsUp ({up})")]
    Requests {
        /// Down below.
        down: String,
        /// Up above.
        up: String,
    },
    /// It should sleep and keep a replica.
    #[error("scaling: idleTimeout needs min: 0, and min is {0}")]
    Sleepless(u32),
    /// Nothing that could ask for a step.
    #[error("scaling: the policy has no target")]
    Aimless,
    /// The text of a policy, with every place.
    #[error("{0}")]
    Flaws(String),
}

impl PolicyError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Preset(_) => "presets: router, standard, processor, compute",
            Self::Bounds { .. } => "give both bounds, as in min: 1, max: 5",
            Self::Requests { .. } => "give both thresholds, as in requestsUp: 50, requestsDown: 10",
            Self::Sleepless(_) => "set min: 0, or leave idleTimeout out",
            Self::Aimless => "give at least one of cpu, memory, responseTime, errorRate, requestsUp",
            Self::Flaws(_) => "`sigil guide scaling` shows every field of a policy",
        }
    }
}

impl Policy {
    /// A preset.
    ///
    /// # Errors
    /// No such preset.
    pub fn preset(name: &str) -> Result<Self, PolicyError> {
        let plain = Self {
            preset: name.to_owned(),
            requests_up: None,
            requests_down: None,
            idle_timeout: 0,
            cpu: Some(70.0),
            memory: Some(80.0),
            ..Self::default()
        };
        Ok(match name {
            "router" => Self::default(),
            "standard" => Self { min: 1, max: 5, up_cooldown: 60, ..plain },
            "processor" => Self { min: 1, max: 3, cpu: Some(80.0), up_cooldown: 120, ..plain },
            "compute" => Self {
                min: 2,
                max: 10,
                up_cooldown: 300,
                down_cooldown: 600,
                mode: Mode::Weighted,
                response_time: Some(2000),
                weights: Weights { cpu: 0.5, memory: 0.3, response_time: 0.2, errors: 0.0 },
                ..plain
            },
            _ => return Err(PolicyError::Preset(name.to_owned())),
        })
    }

    /// What a manifest's `scaling` means: a preset, or fields over one.
    ///
    /// # Errors
    /// No such preset, or fields that exclude each other.
    pub fn of(written: &Scaling) -> Result<Self, PolicyError> {
        match written {
            Scaling::Preset(name) => Self::preset(name),
            Scaling::Policy(fields) => Self::default().with(fields),
        }
    }

    /// The policy of a deployment: `flag` (a preset's name) wins over the manifest. `None` when neither asks for scaling.
    ///
    /// # Errors
    /// As [`Policy::of`].
    pub fn asked(manifest: &Manifest, flag: Option<&str>) -> Result<Option<Self>, PolicyError> {
        match (flag, &manifest.scaling) {
            (Some(name), _) => Self::preset(name).map(Some),
            (None, Some(written)) => Self::of(written).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Reads a policy as YAML (what a manifest's `scaling` holds): by itself, or over `over`.
    ///
    /// # Errors
    /// Every flaw of the text, or fields that exclude each other.
    pub fn read(file: &str, text: &str, over: Option<&Self>) -> Result<Self, PolicyError> {
        let written = sigil_config::manifest::scaling_policy(file, text)
            .map_err(|flaws| PolicyError::Flaws(sigil_config::flaw::lines(&flaws)))?;
        match (&written, over) {
            (Scaling::Policy(fields), Some(over)) => over.clone().with(fields),
            _ => Self::of(&written),
        }
    }

    /// These fields over this policy. A bound that is written alone moves the other one with it.
    ///
    /// # Errors
    /// No such preset, or fields that exclude each other.
    pub fn with(self, o: &ScalingPolicy) -> Result<Self, PolicyError> {
        let base = match &o.preset {
            Some(name) => Self::preset(name)?,
            None => self,
        };
        let (min, max) = match (o.min, o.max) {
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, base.max.max(min)),
            (None, Some(max)) => (base.min.min(max), max),
            (None, None) => (base.min, base.max),
        };
        if min > max {
            return Err(PolicyError::Bounds { min, max });
        }
        let requests_up = o.requests_up.or(base.requests_up);
        // a threshold that is written alone has the other one as far away as the router's
        let requests_down = match (o.requests_up, o.requests_down) {
            (_, Some(down)) => Some(down),
            (Some(up), None) => Some(base.requests_down.filter(|down| *down < up).unwrap_or(up / 5.0)),
            (None, None) => base.requests_down,
        };
        if let (Some(up), Some(down)) = (requests_up, requests_down)
            && down >= up
        {
            return Err(PolicyError::Requests { down: down.to_string(), up: up.to_string() });
        }
        let small = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
        let idle_timeout = match (o.idle_timeout, min) {
            (Some(idle), 0) => small(idle),
            (Some(0), _) => 0,
            (Some(_), min) => return Err(PolicyError::Sleepless(min)),
            // whoever lets it go to none means that it may sleep
            (None, 0) if o.min == Some(0) && base.idle_timeout == 0 => IDLE,
            (None, 0) => base.idle_timeout,
            (None, _) => 0,
        };
        let mode = match (o.mode.as_deref(), o.weights) {
            (Some("weighted"), _) | (None, Some(_)) => Mode::Weighted,
            (Some(_), _) => Mode::Single,
            (None, None) => base.mode,
        };
        let weights = |w: ScalingWeights| Weights {
            cpu: w.cpu,
            memory: w.memory,
            response_time: w.response_time,
            errors: w.errors,
        };
        let policy = Self {
            min,
            max,
            cpu: o.cpu.or(base.cpu),
            memory: o.memory.or(base.memory),
            response_time: o.response_time.or(base.response_time),
            error_rate: o.error_rate.or(base.error_rate),
            requests_up,
            requests_down,
            up_cooldown: o.up_cooldown.map_or(base.up_cooldown, small),
            down_cooldown: o.down_cooldown.map_or(base.down_cooldown, small),
            evaluate_every: o.evaluate_every.map_or(base.evaluate_every, small).max(1),
            stabilisation: o.stabilisation.map_or(base.stabilisation, small),
            step_up: o.step_up.unwrap_or(base.step_up).max(1),
            step_down: o.step_down.unwrap_or(base.step_down).max(1),
            mode,
            weights: o.weights.map_or(base.weights, weights),
            predictive: o.predictive.unwrap_or(base.predictive),
            cost_cap: o.cost_cap.or(base.cost_cap),
            idle_timeout,
            sleep: match o.sleep.as_deref() {
                Some("paused") => Depth::Paused,
                Some("stopped") => Depth::Stopped,
                Some(_) => Depth::Auto,
                None => base.sleep,
            },
            preset: base.preset,
        };
        if policy.mode == Mode::Weighted && policy.weight() <= 0.0 && policy.requests_up.is_none() {
            return Err(PolicyError::Aimless);
        }
        Ok(policy)
    }

    /// The policy as a manifest writes it; [`Policy::read`] reads the same.
    pub fn to_yaml(&self) -> String {
        let mut lines = vec![format!("preset: {}", self.preset)];
        let mut line = |key: &str, value: Option<String>| lines.extend(value.map(|v| format!("{key}: {v}")));
        let float = |value: Option<f64>| value.map(|v| v.to_string());
        line("min", Some(self.min.to_string()));
        line("max", Some(self.max.to_string()));
        line("cpu", float(self.cpu));
        line("memory", float(self.memory));
        line("responseTime", self.response_time.map(|v| v.to_string()));
        line("errorRate", float(self.error_rate));
        line("requestsUp", float(self.requests_up));
        line("requestsDown", float(self.requests_down));
        line("upCooldown", Some(self.up_cooldown.to_string()));
        line("downCooldown", Some(self.down_cooldown.to_string()));
        line("evaluateEvery", Some(self.evaluate_every.to_string()));
        line("stabilisation", Some(self.stabilisation.to_string()));
        line("stepUp", Some(self.step_up.to_string()));
        line("stepDown", Some(self.step_down.to_string()));
        line("mode", Some(self.mode.as_str().to_owned()));
        if self.mode == Mode::Weighted {
            let Weights { cpu, memory, response_time, errors } = self.weights;
            let all = format!("{{ cpu: {cpu}, memory: {memory}, responseTime: {response_time}, errors: {errors} }}");
            line("weights", Some(all));
        }
        line("predictive", Some(self.predictive.to_string()));
        line("costCap", float(self.cost_cap));
        line("idleTimeout", Some(self.idle_timeout.to_string()));
        line("sleep", Some(self.sleep.as_str().to_owned()));
        lines.push(String::new());
        lines.join("\n")
    }

    /// Fewest and most replicas while it is awake.
    pub fn awake(&self) -> (u32, u32) {
        (self.min.max(1), self.max.max(1))
    }

    /// Whether it may sleep at all.
    pub fn sleeps(&self) -> bool {
        self.min == 0 && self.idle_timeout > 0
    }

    /// What the weights of measures with a target sum up to.
    fn weight(&self) -> f64 {
        let Weights { cpu, memory, response_time, errors } = self.weights;
        let of = |weight: f64, aimed: bool| if aimed { weight } else { 0.0 };
        of(cpu, self.cpu.is_some())
            + of(memory, self.memory.is_some())
            + of(response_time, self.response_time.is_some())
            + of(errors, self.error_rate.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_config::manifest::{PRESETS, parse};

    fn policy(scaling: &str) -> Result<Policy, PolicyError> {
        Policy::read("policy.yaml", scaling, None)
    }

    #[test]
    fn presets_are_those_of_the_product() {
        for name in PRESETS {
            let p = Policy::preset(name).unwrap();
            assert!(p.min <= p.max && p.max > 0 && p.preset == name, "{name}");
            assert_eq!(p.min == 0, p.sleeps(), "{name}");
            assert_eq!(Policy::read("p", name, None).unwrap(), p);
        }
        let row = |name: &str| {
            let p = Policy::preset(name).unwrap();
            (p.min, p.max, p.cpu, p.memory, p.up_cooldown, p.down_cooldown)
        };
        assert_eq!(row("router"), (0, 3, Some(40.0), Some(60.0), 30, 300));
        assert_eq!(row("standard"), (1, 5, Some(70.0), Some(80.0), 60, 300));
        assert_eq!(row("processor"), (1, 3, Some(80.0), Some(80.0), 120, 300));
        assert_eq!(row("compute"), (2, 10, Some(70.0), Some(80.0), 300, 600));
        let router = Policy::preset("router").unwrap();
        assert_eq!((router.requests_up, router.requests_down, router.idle_timeout), (Some(50.0), Some(10.0), 900));
        let compute = Policy::preset("compute").unwrap();
        assert_eq!((compute.mode, compute.response_time, compute.weights.cpu), (Mode::Weighted, Some(2000), 0.5));
        assert_eq!(Policy::preset("micro"), Err(PolicyError::Preset("micro".into())));
    }

    #[test]
    fn fields_go_over_a_preset_and_bounds_move_together() {
        let bounds = |text: &str| policy(text).map(|p| (p.min, p.max));
        assert_eq!(bounds("min: 7"), Ok((7, 7)));
        assert_eq!(bounds("{preset: compute, max: 1}"), Ok((1, 1)));
        assert_eq!(bounds("{preset: compute, min: 0}").unwrap(), (0, 10));
        let p = policy("{preset: standard, min: 0}").unwrap();
        assert!(p.sleeps() && p.idle_timeout == 900);
        assert!(!policy("{min: 1}").unwrap().sleeps());
        assert!(!policy("{idleTimeout: 0}").unwrap().sleeps());
        assert_eq!(policy("{preset: standard, idleTimeout: 60}"), Err(PolicyError::Sleepless(1)));
        assert_eq!(policy("{preset: standard, requestsUp: 100}").unwrap().requests_down, Some(20.0));
        assert!(matches!(policy("requestsUp: 5"), Ok(p) if p.requests_down == Some(1.0)));
        assert!(matches!(policy("requestsDown: 60"), Err(PolicyError::Requests { .. })));
        let errors = "{mode: weighted, weights: {errors: 1}, preset: standard}";
        assert_eq!(policy(errors), Err(PolicyError::Aimless));
        let error = policy("min: 1\ncpu: high").unwrap_err();
        assert!(error.to_string().contains("policy.yaml:2:6: scaling.cpu must be a number"), "{error}");
    }

    #[test]
    fn a_policy_that_is_shown_is_read_as_it_was() {
        for text in
            ["router", "compute", "{mode: weighted, costCap: 0.25, sleep: paused, responseTime: 1500}", "min: 2"]
        {
            let p = policy(text).unwrap();
            assert_eq!(Policy::read("p", &p.to_yaml(), None).unwrap(), p, "{}", p.to_yaml());
            let json = serde_json::to_string(&p).unwrap();
            assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), p);
        }
        let over = policy("{max: 9, cpu: 55}").unwrap();
        let changed = Policy::read("p", "stepUp: 2", Some(&over)).unwrap();
        assert_eq!((changed.max, changed.cpu, changed.step_up), (9, Some(55.0), 2));
    }

    #[test]
    fn a_flag_wins_over_the_manifest() {
        let manifest = |text: &str| parse("mcp.yaml", text).unwrap();
        assert_eq!(Policy::asked(&manifest(""), None).unwrap(), None);
        let asked = |text: &str, flag| Policy::asked(&manifest(text), flag).unwrap().map(|p| (p.preset, p.max));
        assert_eq!(asked("scaling: compute", None), Some(("compute".into(), 10)));
        assert_eq!(asked("scaling: compute", Some("router")), Some(("router".into(), 3)));
        assert_eq!(asked("scaling: {preset: standard, max: 8}", None), Some(("standard".into(), 8)));
    }
}
