//! Numbers out of the text of `/metrics`.

use std::collections::BTreeMap;

/// One scrape.
pub struct Figures<'a> {
    samples: Vec<(&'a str, BTreeMap<&'a str, &'a str>, f64)>,
}

impl<'a> Figures<'a> {
    /// Reads the text format of Prometheus, as our own exporter writes it; what is no sample is passed over.
    pub fn read(text: &'a str) -> Self {
        Self { samples: text.lines().filter_map(sample).collect() }
    }

    /// The sum of a metric's series with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |found: &BTreeMap<&str, &str>| labels.iter().all(|(label, value)| found.get(label) == Some(value));
        self.samples
            .iter()
            .filter(|(known, found, _)| *known == name && fits(found))
            .fold(0.0, |sum, (_, _, value)| sum + value)
    }

    /// The sums of a metric's series by the values of a label.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<&'a str, f64> {
        let mut sums = BTreeMap::new();
        for (_, labels, value) in self.samples.iter().filter(|(known, ..)| *known == name) {
            if let Some(of) = labels.get(label) {
                *sums.entry(*of).or_default() += value;
            }
        }
        sums
    }
}

fn sample(line: &str) -> Option<(&str, BTreeMap<&str, &str>, f64)> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
    let labels = labels.map(|(label, value)| (label, value.trim_matches('"'))).collect();
    Some((name, labels, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let text =
            "# HELP x y\n# TYPE x counter\nx{a=\"1\",b=\"u\"} 2\nx{a=\"2\",b=\"u\"} 3\nx{a=\"1\",b=\"v\"} 4.5\ny 7\n";
        let figures = Figures::read(text);
        assert_eq!(figures.sum("x", &[]), 9.5);
        assert_eq!(figures.sum("x", &[("a", "1")]), 6.5);
        assert_eq!(figures.sum("y", &[]), 7.0);
        assert_eq!(figures.by("x", "b"), BTreeMap::from([("u", 5.0), ("v", 4.5)]));
    }
}
