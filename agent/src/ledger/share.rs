//! What is fair when there is not enough: everybody's lower bound, and what is left in proportion to
//! the weights, where nobody gets more than its upper bound.

/// One who has a claim to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimant {
    /// Guaranteed.
    pub floor: u64,
    /// Wanted at most; at least `floor`.
    pub ceiling: u64,
    /// Share of what is left, at least 1.
    pub weight: u32,
}

/// The fair share of each. They add up to `total` at most, unless the lower bounds alone are more.
pub(super) fn fair_shares(total: u64, claimants: &[Claimant]) -> Vec<u64> {
    let floors: u128 = claimants.iter().map(|c| u128::from(c.floor)).sum();
    let mut left = u128::from(total).saturating_sub(floors);
    let mut weights: u128 = claimants.iter().map(|c| u128::from(c.weight.max(1))).sum();
    let room = |c: &Claimant| u128::from(c.ceiling.saturating_sub(c.floor));
    let weight = |c: &Claimant| u128::from(c.weight.max(1));
    // Those who are content with the least for their weight first: what they leave, the others share.
    let mut order: Vec<(usize, &Claimant)> = claimants.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| {
        let (a, b) = (room(a) * weight(b), room(b) * weight(a));
        a.cmp(&b)
    });
    let mut shares: Vec<u64> = claimants.iter().map(|c| c.floor).collect();
    for (index, claimant) in order {
        let part = left * weight(claimant) / weights.max(1);
        let part = part.min(room(claimant));
        left -= part;
        weights -= weight(claimant);
        if let Some(share) = shares.get_mut(index) {
            *share = share.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(floor: u64, ceiling: u64, weight: u32) -> Claimant {
        Claimant {
            floor,
            ceiling,
            weight,
        }
    }

    #[test]
    fn what_is_above_the_lower_bounds_is_shared_by_weight() {
        let shares = fair_shares(100, &[claim(10, 100, 1), claim(10, 100, 3)]);
        assert_eq!(shares, [30, 70]);
    }

    #[test]
    fn what_one_does_not_want_the_others_share() {
        let shares = fair_shares(
            100,
            &[claim(10, 15, 8), claim(10, 100, 1), claim(10, 100, 1)],
        );
        assert_eq!(shares, [15, 42, 43]);
    }

    #[test]
    fn with_plenty_everybody_gets_its_upper_bound_and_with_nothing_its_lower() {
        let claims = [claim(1, 5, 1), claim(2, 7, 9)];
        assert_eq!(fair_shares(1000, &claims), [5, 7]);
        assert_eq!(fair_shares(0, &claims), [1, 2]);
        assert!(fair_shares(10, &[]).is_empty());
    }

    fn claimants(least: usize) -> impl Strategy<Value = Vec<Claimant>> {
        let claimant = (0..1000u64, 0..1000u64, 1..100u32)
            .prop_map(|(floor, above, weight)| claim(floor, floor + above, weight));
        prop::collection::vec(claimant, least..12)
    }

    proptest! {
        #[test]
        fn shares_stay_within_bounds_and_use_all_that_is_wanted(
            claimants in claimants(0), total in 0..20_000u64,
        ) {
            let shares = fair_shares(total, &claimants);
            for (share, c) in shares.iter().zip(&claimants) {
                prop_assert!((c.floor..=c.ceiling).contains(share));
            }
            let given: u64 = shares.iter().sum();
            let floors: u64 = claimants.iter().map(|c| c.floor).sum();
            let ceilings: u64 = claimants.iter().map(|c| c.ceiling).sum();
            prop_assert_eq!(given, total.clamp(floors, ceilings));
        }

        #[test]
        fn more_weight_never_gets_less(
            claimants in claimants(1), total in 0..20_000u64, index in any::<prop::sample::Index>(),
        ) {
            let index = index.index(claimants.len());
            let before = fair_shares(total, &claimants)[index];
            let mut heavier = claimants;
            heavier[index].weight *= 2;
            // One unit of rounding goes to whoever comes last.
            prop_assert!(fair_shares(total, &heavier)[index] + 1 >= before);
        }
    }
}
