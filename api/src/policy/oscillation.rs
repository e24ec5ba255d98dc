//! Finds rules that would chase each other on a load that does not change.
//!
//! Two kinds. *Overlap*: one value fires both rules. *Cycle*: after the step of the one, the same
//! load looks like work for the other, and back: of 1 CPU 70 % are 35 % of 2 CPUs. Cycles can be
//! computed where the metric follows from load and size alone (`cpu`, `memory`, `memory.available`,
//! shares and throughputs of limits on I/O): the next size is then a function of the present one, constant between the
//! loads at which some rule begins to fire, so walking it once between each two of those loads, from
//! every reachable size, finds every cycle. Pressure and custom metrics are checked for overlap only.

use std::collections::{BTreeSet, VecDeque};

use super::rule::level_text;
use super::step;
use super::{
    Action, Comparison, Metric, MetricUnit, Policy, PolicyError, Resource, Rule, Target, Threshold,
};
use crate::units::Bounds;

/// Sizes looked at, shared among the rules of an axis: keeps the work bounded for absurd policies.
const SIZES_TIMES_RULES: usize = 512;

/// Refuses rules that would oscillate, naming two of them.
pub fn check(policy: &Policy) -> Result<(), PolicyError> {
    overlaps(policy)?;
    Resource::ALL
        .into_iter()
        .try_for_each(|resource| cycles(policy, resource))
}

fn overlaps(policy: &Policy) -> Result<(), PolicyError> {
    let thresholds = || {
        policy.rules.iter().filter_map(|rule| match rule {
            Rule::Threshold(threshold) => Some(threshold),
            Rule::Target(_) => None,
        })
    };
    for grow in thresholds() {
        for shrink in thresholds() {
            let same =
                grow.metric == shrink.metric && grow.action.resource() == shrink.action.resource();
            if same && opposes(grow.action, shrink.action) && touch(grow, shrink) {
                return Err(overlap_error(grow, shrink));
            }
        }
    }
    Ok(())
}

/// Whether the first leads to a larger size than the second, for certain.
fn opposes(grow: Action, shrink: Action) -> bool {
    match (grow, shrink) {
        (Action::Add(_), Action::Add(_)) | (Action::Remove(_), _) => false,
        (Action::Add(_), _) | (_, Action::Remove(_)) => true,
        (Action::SetCpus(more), Action::SetCpus(less)) => more > less,
        (Action::SetMemory(more), Action::SetMemory(less)) => more > less,
        (Action::SetIo { size: more, .. }, Action::SetIo { size: less, .. }) => more > less,
        _ => false,
    }
}

/// Whether one value fires both, or nothing lies between the two.
fn touch(a: &Threshold, b: &Threshold) -> bool {
    match (a.comparison, b.comparison) {
        (Comparison::Above, Comparison::Below) => b.level >= a.level,
        (Comparison::Below, Comparison::Above) => a.level >= b.level,
        _ => matches!((a.action, b.action), (Action::Add(_), Action::Remove(_))),
    }
}

fn overlap_error(grow: &Threshold, shrink: &Threshold) -> PolicyError {
    let text = |level| level_text(&grow.metric, level);
    let (low, high) = (grow.level.min(shrink.level), grow.level.max(shrink.level));
    let why = if grow.comparison == shrink.comparison {
        let side = if grow.comparison == Comparison::Above {
            "above"
        } else {
            "below"
        };
        let level = if grow.comparison == Comparison::Above {
            high
        } else {
            low
        };
        format!(
            "both fire {side} {}; let them look at opposite sides, with a gap between",
            text(level)
        )
    } else if low < high {
        format!(
            "both fire between {} and {}; leave a gap between the two levels",
            text(low),
            text(high)
        )
    } else {
        format!(
            "nothing lies between them at {}; leave a gap between the two levels",
            text(low)
        )
    };
    PolicyError::Oscillates {
        grow: grow.to_string(),
        shrink: shrink.to_string(),
        why,
    }
}

/// The rules of one resource whose metric follows from load and size, and the sizes they lead to.
struct Model<'a> {
    resource: Resource,
    bounds: Bounds<u64>,
    rules: Vec<&'a Rule>,
    /// Ascending.
    sizes: Vec<u64>,
    /// For each size and rule, in this order: where a threshold leads when it fires.
    targets: Vec<u64>,
}

/// One resize of the walk.
#[derive(Clone, Copy)]
struct Move<'a> {
    from: u64,
    to: u64,
    rule: &'a Rule,
}

impl<'a> Model<'a> {
    fn of(policy: &'a Policy, resource: Resource, bounds: Bounds<u64>) -> Self {
        let modelled = |metric: &Metric| {
            *metric == resource.share()
                || Some(metric) == resource.throughput().as_ref()
                || (resource == Resource::Memory && *metric == Metric::MemoryAvailable)
        };
        let rules = policy
            .rules
            .iter()
            .filter(|r| r.resource() == resource && modelled(r.metric()));
        let mut model = Self {
            resource,
            bounds,
            rules: rules.collect(),
            sizes: Vec::new(),
            targets: Vec::new(),
        };
        model.sizes = model.reachable();
        model.targets = model
            .sizes
            .iter()
            .flat_map(|size| model.leads(*size))
            .collect();
        model
    }

    /// Where each rule leads from a size. Target tracking reaches every multiple of its step: here
    /// it leads to the next one.
    fn leads(&self, size: u64) -> impl Iterator<Item = u64> {
        self.rules.iter().map(move |rule| match rule {
            Rule::Threshold(rule) => step::target(rule.action, size, &self.bounds),
            Rule::Target(_) => {
                let step = step::tracking_step(self.resource, &self.bounds);
                self.bounds
                    .clamp(step::round_up(size.saturating_add(1), step))
            }
        })
    }

    /// Sizes that the rules can lead to from either bound, ascending.
    fn reachable(&self) -> Vec<u64> {
        let most = (SIZES_TIMES_RULES / self.rules.len().max(1)).max(16);
        let mut sizes = BTreeSet::from([self.bounds.min, self.bounds.max]);
        let mut open = VecDeque::from([self.bounds.min, self.bounds.max]);
        while let Some(size) = open.pop_front() {
            for next in self.leads(size) {
                if sizes.len() < most && sizes.insert(next) {
                    open.push_back(next);
                }
            }
        }
        sizes.into_iter().collect()
    }

    /// Loads between those at which a rule begins to fire at one of the sizes, in the resource's
    /// smallest unit.
    fn loads(&self) -> Vec<f64> {
        let mut edges = vec![0.0];
        let half_step = step::tracking_step(self.resource, &self.bounds) as f64 / 2.0;
        for size in &self.sizes {
            let size = *size as f64;
            for rule in &self.rules {
                match rule {
                    Rule::Threshold(Threshold {
                        metric: Metric::MemoryAvailable,
                        level,
                        ..
                    }) => {
                        edges.push(size - level);
                    }
                    Rule::Threshold(rule) if rule.metric.unit() == MetricUnit::Number => {
                        edges.push(rule.level * self.resource.unit() as f64);
                    }
                    Rule::Threshold(rule) => edges.push(size * rule.level / 100.0),
                    Rule::Target(rule) => {
                        let sizes = [size - half_step, size, size + half_step];
                        edges.extend(sizes.map(|size| size * rule.level / 100.0));
                    }
                }
            }
        }
        edges.retain(|load| *load >= 0.0 && *load <= self.bounds.max as f64);
        edges.push(self.bounds.max as f64);
        edges.sort_by(f64::total_cmp);
        edges.dedup();
        edges
            .windows(2)
            .map(|pair| pair.iter().sum::<f64>() / 2.0)
            .collect()
    }

    /// What the rules do at every size under this load: growth first, then the smallest shrink.
    fn moves(&self, load: f64) -> Vec<Option<Move<'a>>> {
        let targets = self.targets.chunks_exact(self.rules.len().max(1));
        let at = self.sizes.iter().zip(targets);
        at.map(|(size, targets)| {
            let wanted = self.rules.iter().zip(targets).filter_map(|(rule, to)| {
                let value = self.value(rule.metric(), *size, load);
                let to = match rule {
                    Rule::Threshold(rule) => {
                        rule.comparison.breached(value, rule.level).then_some(*to)?
                    }
                    Rule::Target(Target { level, .. }) => {
                        step::track_target(self.resource, *level, value, *size, &self.bounds)
                    }
                };
                (to != *size).then_some(Move {
                    from: *size,
                    to,
                    rule,
                })
            });
            wanted.max_by_key(|m| m.to)
        })
        .collect()
    }

    /// What a metric shows at a size under a load, both in the resource's smallest unit.
    fn value(&self, metric: &Metric, size: u64, load: f64) -> f64 {
        let size = size as f64;
        match metric.unit() {
            MetricUnit::Bytes => (size - load).max(0.0),
            MetricUnit::Percent => (100.0 * load / size.max(1.0)).min(100.0),
            // No more passes than the limit lets pass.
            MetricUnit::Number => load.min(size) / self.resource.unit() as f64,
        }
    }

    /// Follows one load from every size; the first cycle found, as the moves in it.
    fn cycle(&self, load: f64) -> Option<Vec<Move<'a>>> {
        let moves = self.moves(load);
        let next = |size: u64| {
            let at = self.sizes.binary_search(&size).ok()?;
            moves.get(at).copied().flatten().map(|step| (at, step))
        };
        // The walk in which a size was passed; sizes of earlier walks are known to come to rest.
        let mut passed_in = vec![0usize; self.sizes.len()];
        for (walk, start) in (1..).zip(&self.sizes) {
            let mut path: Vec<Move<'a>> = Vec::new();
            let mut size = *start;
            while let Some((at, step)) = next(size) {
                let passed = passed_in.get_mut(at)?;
                if *passed == walk {
                    let begin = path.iter().position(|m| m.from == size)?;
                    return Some(path.split_off(begin));
                }
                if *passed != 0 {
                    break;
                }
                *passed = walk;
                path.push(step);
                size = step.to;
            }
        }
        None
    }
}

fn cycles(policy: &Policy, resource: Resource) -> Result<(), PolicyError> {
    let Some(bounds) = policy.bounds_of(resource) else {
        return Ok(());
    };
    let model = Model::of(policy, resource, bounds);
    if model.rules.len() < 2 {
        return Ok(());
    }
    for load in model.loads() {
        if let Some(moves) = model.cycle(load) {
            let grow = moves
                .iter()
                .filter(|m| m.to > m.from)
                .min_by_key(|m| m.from);
            let shrink = moves.iter().filter(|m| m.to < m.from).min_by_key(|m| m.to);
            if let (Some(grow), Some(shrink)) = (grow, shrink) {
                return Err(cycle_error(&model, load, grow, shrink));
            }
        }
    }
    Ok(())
}

fn cycle_error(model: &Model<'_>, load: f64, grow: &Move<'_>, shrink: &Move<'_>) -> PolicyError {
    let size = |size| model.resource.text(size);
    let shown = |step: &Move<'_>| {
        let metric = step.rule.metric();
        let value = model.value(metric, step.from, load);
        match metric.unit() {
            MetricUnit::Bytes => format!("{} available", Resource::Memory.text(value as u64)),
            MetricUnit::Percent => format!("{metric} at {value:.0}%"),
            MetricUnit::Number => format!("{metric} at {value:.1}"),
        }
    };
    let mut why = format!(
        "at {} a steady load of {} shows {} and grows it to {}, and at {} the same load shows {} \
         and shrinks it to {}",
        size(grow.from),
        size(load as u64),
        shown(grow),
        size(grow.to),
        size(shrink.from),
        shown(shrink),
        size(shrink.to),
    );
    why.push_str(&match highest_quiet_level(model, grow.rule, shrink.rule) {
        Some(level) => format!("; a shrink level of at most {level}% leaves a gap"),
        None => "; move the levels apart or take smaller steps".to_owned(),
    });
    PolicyError::Oscillates {
        grow: grow.rule.to_string(),
        shrink: shrink.rule.to_string(),
        why,
    }
}

/// For two shares of the same metric: the shrink level that is quiet at every reachable size.
fn highest_quiet_level(model: &Model<'_>, grow: &Rule, shrink: &Rule) -> Option<u64> {
    let (Rule::Threshold(grow), Rule::Threshold(shrink)) = (grow, shrink) else {
        return None;
    };
    if grow.metric != shrink.metric || grow.metric.unit() != MetricUnit::Percent {
        return None;
    }
    let quiet = model.sizes.iter().filter_map(|from| {
        let to = step::target(shrink.action, *from, &model.bounds);
        (to < *from).then(|| grow.level * to as f64 / *from as f64)
    });
    let level = quiet.min_by(f64::total_cmp)?.floor();
    (level >= 1.0).then_some(level as u64)
}
