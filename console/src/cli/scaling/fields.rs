//! Fields of a policy as flags.

use std::time::Duration;

use super::super::{args, time};

/// What is written over a policy.
#[derive(Debug, Default, clap::Args)]
pub struct Fields {
    /// Where all other fields come from
    #[arg(long, value_parser = ["router", "standard", "processor", "compute"])]
    preset: Option<String>,
    /// Fewest replicas; 0 lets it sleep
    #[arg(long, value_name = "N")]
    min: Option<u32>,
    /// Most replicas
    #[arg(long, value_name = "N")]
    max: Option<u32>,
    /// Target for CPU, percent of the limit
    #[arg(long, value_name = "PERCENT")]
    cpu: Option<f64>,
    /// Target for memory above the baseline, percent of the limit
    #[arg(long, value_name = "PERCENT")]
    memory: Option<f64>,
    /// Target for response times (95 of 100 calls)
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    response_time: Option<Duration>,
    /// Target for calls that fail, percent
    #[arg(long, value_name = "PERCENT")]
    error_rate: Option<f64>,
    /// Up above so many requests a minute a replica
    #[arg(long, value_name = "N")]
    requests_up: Option<f64>,
    /// Down below so many
    #[arg(long, value_name = "N")]
    requests_down: Option<f64>,
    /// Shortest time from a step to one up
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    up_cooldown: Option<Duration>,
    /// Shortest time from a step to one down
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    down_cooldown: Option<Duration>,
    /// Time between evaluations
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    evaluate_every: Option<Duration>,
    /// Down only when nothing in this time asked for more
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    stabilisation: Option<Duration>,
    /// Most replicas that a step adds
    #[arg(long, value_name = "N")]
    step_up: Option<u32>,
    /// Most replicas that a step takes away
    #[arg(long, value_name = "N")]
    step_down: Option<u32>,
    /// Each target by itself, or one score of all
    #[arg(long, value_parser = ["single", "weighted"])]
    mode: Option<String>,
    /// Share of cpu, memory, responseTime or errors in the score
    #[arg(long = "weight", value_name = "MEASURE=SHARE", value_parser = args::pair)]
    weight: Vec<(String, String)>,
    /// Look ahead by what the last seven days say
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    predictive: Option<bool>,
    /// Most that a step may add to the cost of an hour
    #[arg(long, value_name = "COST")]
    cost_cap: Option<f64>,
    /// Sleep after this time without a request; 0: never
    #[arg(long, value_name = "TIME", value_parser = time::duration)]
    idle_timeout: Option<Duration>,
    /// How deep it sleeps
    #[arg(long, value_parser = ["auto", "paused", "stopped"])]
    sleep: Option<String>,
}

impl Fields {
    /// What is given, as a manifest writes it; empty when nothing is.
    pub fn yaml(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                out.push_str(&format!("{key}: {value}\n"));
            }
        };
        let seconds = |time: Option<Duration>| time.map(|t| t.as_secs().to_string());
        line("preset", self.preset.clone());
        line("min", self.min.map(|n| n.to_string()));
        line("max", self.max.map(|n| n.to_string()));
        line("cpu", self.cpu.map(|n| n.to_string()));
        line("memory", self.memory.map(|n| n.to_string()));
        line("responseTime", self.response_time.map(|t| t.as_millis().to_string()));
        line("errorRate", self.error_rate.map(|n| n.to_string()));
        line("requestsUp", self.requests_up.map(|n| n.to_string()));
        line("requestsDown", self.requests_down.map(|n| n.to_string()));
        line("upCooldown", seconds(self.up_cooldown));
        line("downCooldown", seconds(self.down_cooldown));
        line("evaluateEvery", seconds(self.evaluate_every));
        line("stabilisation", seconds(self.stabilisation));
        line("stepUp", self.step_up.map(|n| n.to_string()));
        line("stepDown", self.step_down.map(|n| n.to_string()));
        line("mode", self.mode.clone());
        let weights: Vec<String> =
            self.weight.iter().map(|(measure, share)| format!("{measure:?}: {}", number(share))).collect();
        line("weights", (!weights.is_empty()).then(|| format!("{{ {} }}", weights.join(", "))));
        line("predictive", self.predictive.map(|on| on.to_string()));
        line("costCap", self.cost_cap.map(|n| n.to_string()));
        line("idleTimeout", seconds(self.idle_timeout));
        line("sleep", self.sleep.clone());
        out
    }
}

/// A number as it is, anything else as a text in quotes: the agent says what is wrong with it.
fn number(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| format!("{text:?}"), |n| n.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sigil_core::scale::{Mode, Policy};

    #[test]
    fn flags_are_fields_of_a_policy() {
        let fields = Fields {
            preset: Some("standard".into()),
            max: Some(8),
            response_time: Some(Duration::from_millis(1500)),
            up_cooldown: Some(Duration::from_secs(90)),
            weight: vec![("cpu".into(), "0.5".into()), ("responseTime".into(), "0.5".into())],
            predictive: Some(true),
            ..Fields::default()
        };
        let policy = Policy::read("p", &fields.yaml(), None).unwrap();
        assert_eq!((policy.max, policy.response_time, policy.up_cooldown), (8, Some(1500), 90));
        assert_eq!((policy.mode, policy.weights.response_time, policy.predictive), (Mode::Weighted, 0.5, true));
        assert_eq!(Fields::default().yaml(), "");
        let wrong = Fields { weight: vec![("speed".into(), "x\ny".into())], ..Fields::default() };
        assert!(Policy::read("p", &wrong.yaml(), None).unwrap_err().to_string().contains("unknown key 'speed'"));
    }
}
