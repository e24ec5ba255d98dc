//! Bars and sparklines as text.

/// The characters that pictures are made of.
#[derive(Debug, Clone, Copy)]
pub struct Glyphs {
    /// Of a bar, by [`Zone`].
    bar: [char; 4],
    /// Of a sparkline, from nothing to everything.
    spark: [char; 8],
    /// Only ASCII is shown.
    pub ascii: bool,
}

impl Glyphs {
    /// Unicode's blocks.
    pub const BLOCKS: Self = Self {
        bar: ['█', '▓', '▒', '░'],
        spark: ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        ascii: false,
    };
    /// For terminals that show ASCII only.
    pub const ASCII: Self = Self {
        bar: ['#', '=', '+', '.'],
        spark: ['_', '.', ':', '-', '=', '+', '*', '#'],
        ascii: true,
    };

    /// Those of a part of a bar.
    pub fn zone(&self, zone: Zone, length: usize) -> String {
        let glyph = match zone {
            Zone::Floor => self.bar[0],
            Zone::Above => self.bar[1],
            Zone::Coming => self.bar[2],
            Zone::Room => self.bar[3],
        };
        std::iter::repeat_n(glyph, length).collect()
    }

    /// A line of shares from 0 to 1; what is unknown is blank.
    pub fn spark(&self, shares: &[Option<f64>]) -> String {
        let glyph = |share: f64| {
            // Casts saturate: a share that is not a number is drawn as 0.
            let step = (share.clamp(0.0, 1.0) * 8.0) as usize;
            self.spark.get(step.min(7)).copied().unwrap_or(' ')
        };
        shares
            .iter()
            .map(|share| share.map_or(' ', glyph))
            .collect()
    }
}

/// What a part of a size bar stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// It has this, and keeps it: up to the lower bound.
    Floor,
    /// It has this beyond its lower bound.
    Above,
    /// It shall have this, and has not.
    Coming,
    /// It could grow so far.
    Room,
}

/// Where a size is between nothing and its upper bound, in any unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SizeBar {
    /// What it has.
    pub has: f64,
    /// What it shall have.
    pub target: f64,
    /// Lower bound.
    pub min: f64,
    /// Upper bound: the whole bar.
    pub max: f64,
}

impl SizeBar {
    /// The bar's parts from left to right; their lengths add up to `width`.
    pub fn zones(&self, width: usize) -> [(Zone, usize); 4] {
        let has = self.cells(self.has, width);
        let floor = self.cells(self.min, width).min(has);
        let target = self.cells(self.target, width).max(has);
        [
            (Zone::Floor, floor),
            (Zone::Above, has - floor),
            (Zone::Coming, target - has),
            (Zone::Room, width - target),
        ]
    }

    /// Cells up to `size`. Something is never shown as nothing, nor less than all of it as all.
    fn cells(&self, size: f64, width: usize) -> usize {
        let positive = size > 0.0 && self.max > 0.0;
        if !positive || width == 0 {
            return 0;
        }
        if size >= self.max {
            return width;
        }
        let cells = (size / self.max * width as f64).round() as usize;
        cells.clamp(1, (width - 1).max(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(has: f64, target: f64, min: f64, max: f64) -> String {
        let bar = SizeBar {
            has,
            target,
            min,
            max,
        };
        let zones = bar.zones(8);
        zones
            .into_iter()
            .map(|(zone, length)| Glyphs::ASCII.zone(zone, length))
            .collect()
    }

    #[test]
    fn a_bar_shows_the_bounds_the_size_and_where_it_goes() {
        for (has, target, min, max, bar) in [
            (2.0, 2.0, 1.0, 4.0, "##==...."),
            (1.0, 1.0, 1.0, 4.0, "##......"),
            (4.0, 4.0, 1.0, 4.0, "##======"),
            (2.0, 3.0, 1.0, 4.0, "##==++.."),
            // Shrinking: what it has counts.
            (3.0, 1.0, 1.0, 4.0, "##====.."),
            // Little is not nothing, and nearly all is not all.
            (0.01, 0.01, 0.01, 4.0, "#......."),
            (3.99, 3.99, 1.0, 4.0, "##=====."),
            // A guest that boots has nothing yet.
            (0.0, 1.0, 1.0, 4.0, "++......"),
            (2.0, 2.0, 2.0, 2.0, "########"),
        ] {
            assert_eq!(
                drawn(has, target, min, max),
                bar,
                "{has} {target} {min} {max}"
            );
        }
    }

    #[test]
    fn a_sparkline_has_blanks_where_nothing_is_known() {
        let shares = [
            Some(0.0),
            None,
            Some(0.5),
            Some(1.0),
            Some(7.0),
            Some(f64::NAN),
        ];
        assert_eq!(Glyphs::ASCII.spark(&shares), "_ =##_");
        assert_eq!(Glyphs::BLOCKS.spark(&shares), "▁ ▅██▁");
    }

    proptest! {
        #[test]
        fn a_bar_is_as_long_as_asked_for(
            has in prop::num::f64::ANY, target in prop::num::f64::ANY,
            min in prop::num::f64::ANY, max in prop::num::f64::ANY, width in 0usize..40,
        ) {
            let zones = SizeBar { has, target, min, max }.zones(width);
            prop_assert_eq!(zones.iter().map(|(_, length)| length).sum::<usize>(), width);
        }
    }
}
