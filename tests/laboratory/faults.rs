//! Which faults a call meets: the script first, then chance.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use serde_json::Value;
use serde_json::json;

use crate::fault::Fault;

pub(crate) struct Faults {
    chances: Vec<(Fault, f64)>,
    script: VecDeque<Vec<Fault>>,
    random: fastrand::Rng,
    happened: BTreeMap<&'static str, u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            chances: Vec::new(),
            script: VecDeque::new(),
            random: fastrand::Rng::with_seed(0),
            happened: BTreeMap::new(),
        }
    }
}

impl Faults {
    pub(crate) fn seed(&mut self, seed: u64) {
        self.random.seed(seed);
    }

    pub(crate) fn set_chances(&mut self, chances: &Value) -> Result<(), String> {
        let chances = list(chances)?.iter().map(|entry| {
            let chance = entry.get("chance").and_then(Value::as_f64);
            let chance = chance.ok_or_else(|| format!("{entry} has no chance"))?;
            let fault = entry.get("fault").unwrap_or(&Value::Null);
            Ok::<_, String>((Fault::from_json(fault)?, chance))
        });
        self.chances = chances.collect::<Result<_, _>>()?;
        Ok(())
    }

    pub(crate) fn append(&mut self, script: &Value) -> Result<(), String> {
        let entries = list(script)?.iter().map(|entry| match entry.as_array() {
            Some(faults) => faults.iter().map(Fault::from_json).collect(),
            None => Fault::from_json(entry).map(|fault| vec![fault]),
        });
        self.script.extend(entries.collect::<Result<Vec<_>, _>>()?);
        Ok(())
    }

    /// Those of the next call.
    pub(crate) fn draw(&mut self) -> Vec<Fault> {
        let drawn = self.script.pop_front().unwrap_or_else(|| self.by_chance());
        for fault in &drawn {
            *self.happened.entry(fault.name()).or_default() += 1;
        }
        drawn
    }

    fn by_chance(&mut self) -> Vec<Fault> {
        let mut drawn = Vec::new();
        // One number for all that exclude each other.
        let mut left = self.random.f64();
        let mut is_decided = false;
        for (fault, chance) in &self.chances {
            if is_delay(fault) {
                if self.random.f64() < *chance {
                    drawn.push(fault.clone());
                }
            } else if !is_decided {
                is_decided = left < *chance;
                left -= chance;
                if is_decided {
                    drawn.push(fault.clone());
                }
            }
        }
        drawn
    }

    pub(crate) fn happened(&self) -> Value {
        json!(self.happened)
    }

    pub(crate) fn to_json(&self) -> Value {
        let chances = self.chances.iter();
        let chances = chances
            .map(|(fault, chance)| json!({ "fault": fault.to_json(), "chance": chance }))
            .collect::<Vec<_>>();
        let entry = |faults: &Vec<Fault>| faults.iter().map(Fault::to_json).collect::<Vec<_>>();
        let script = self.script.iter().map(entry).collect::<Vec<_>>();
        json!({ "chances": chances, "next": script })
    }
}

/// Whether it only takes time, so that others may happen as well.
fn is_delay(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::DelayBefore(_) | Fault::DelayAfter(_) | Fault::HoldBefore | Fault::HoldAfter
    )
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value
        .as_array()
        .ok_or_else(|| format!("{value} is no list"))
}
