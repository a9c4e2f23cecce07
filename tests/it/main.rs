//! The whole program, run as users run it: a real binary on real directories, killed, filled up and asked.

mod accounts;
mod agreement;
mod demo;
mod disk;
mod double;
mod faults;
mod firekills;
mod generate;
mod golden;
mod guard;
mod harness;
mod hostile;
mod identical;
mod kills;
mod layers;
mod monitoring;
mod parts;
mod readers;
mod redeliver;
mod sandbox;
mod schemas;
mod sdk;
mod serving;
mod tools;
mod transfer;
mod viber;
