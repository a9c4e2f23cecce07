//! The whole program, run as users run it: a real binary on real directories, killed, filled up and asked.

mod accounts;
mod disk;
mod double;
mod generate;
mod golden;
mod guard;
mod harness;
mod identical;
mod kills;
mod layers;
mod monitoring;
mod readers;
mod sandbox;
mod schemas;
mod sdk;
mod serving;
mod tools;
mod transfer;
