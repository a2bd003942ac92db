//! A story told on a terminal, each step of which is held against what was told.

use std::{
    fmt::Display,
    io::{IsTerminal, stdout},
    time::Instant,
};

/// Tells the story and remembers which steps were not as told.
#[derive(Debug)]
pub struct Narrator {
    acts: usize,
    steps: usize,
    wrong: Vec<String>,
    colour: bool,
    begun: Instant,
}

impl Default for Narrator {
    fn default() -> Self {
        Self {
            acts: 0,
            steps: 0,
            wrong: Vec::new(),
            colour: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            begun: Instant::now(),
        }
    }
}

impl Narrator {
    /// Begins a numbered act.
    pub fn act(&mut self, title: &str) {
        self.acts += 1;
        let head = format!("{}. {title}", self.acts);
        println!("\n{}", self.paint("1", &head));
    }

    /// Says something.
    pub fn say(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("   {line}");
        }
    }

    /// Shows a command and what it printed.
    pub fn show(&self, command: &str, printed: &str) {
        println!("   {}", self.paint("36", &format!("$ {command}")));
        for line in printed.trim_end().lines() {
            println!("   {}", self.paint("2", line));
        }
    }

    /// A step: `told` is what should have happened, `so` whether it did, `seen` what did.
    pub fn step(&mut self, told: impl Display, so: bool, seen: impl Display) {
        self.steps += 1;
        let mark = if so {
            self.paint("1;32", "✔")
        } else {
            self.wrong.push(told.to_string());
            self.paint("1;31", "✘ NOT AS TOLD:")
        };
        println!("   {mark} {told} ({seen})");
    }

    /// Ends the story; true if all was as told.
    #[must_use]
    pub fn end(self) -> bool {
        let took = self.begun.elapsed().as_secs();
        if self.wrong.is_empty() {
            let text = format!("All {} steps were as told, in {took} s.", self.steps);
            println!("\n{}", self.paint("1;32", &text));
            return self.steps > 0;
        }
        let text = format!(
            "{} of {} steps were not as told:",
            self.wrong.len(),
            self.steps
        );
        println!("\n{}", self.paint("1;31", &text));
        for step in &self.wrong {
            println!("   {step}");
        }
        false
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
