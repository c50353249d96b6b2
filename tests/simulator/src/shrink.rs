//! Makes a scenario that fails shorter: steps are left out as long as it still breaks the same rule.

use crate::mutation::Mutation;
use crate::run::run;
use crate::scenario::Scenario;

/// A scenario that breaks the same rule with as few steps as were found in so many runs.
pub fn shrink(scenario: &Scenario, mutation: Option<Mutation>, max_runs: usize) -> Scenario {
    let rule_of = |scenario: &Scenario| run(scenario, mutation).violation.map(|violation| violation.rule);
    let mut best = scenario.clone();
    let Some(rule) = rule_of(&best) else { return best };
    let (mut chunk, mut runs) = ((best.steps.len() / 2).max(1), 0);
    loop {
        let (mut start, before) = (0, best.steps.len());
        while start < best.steps.len() && runs < max_runs {
            let mut shorter = best.clone();
            let end = (start + chunk).min(shorter.steps.len());
            shorter.steps.drain(start..end);
            runs += 1;
            if rule_of(&shorter) == Some(rule) {
                best = shorter;
            } else {
                start = end;
            }
        }
        let is_done = chunk == 1 && best.steps.len() == before;
        if is_done || runs >= max_runs {
            return best;
        }
        chunk = (chunk / 2).max(1);
    }
}
