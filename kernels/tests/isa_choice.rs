//! `STELLATE_CPU_ISA` is read once when a backend is built. Each value is tried in a process of its own, because
//! the environment belongs to the whole process.

use std::process::Command;

use stellate_kernels::cpu::ISA_VARIABLE;
use stellate_kernels::{Backend, Cpu, CpuOptions, Isa};

const CHILD_VARIABLE: &str = "STELLATE_KERNELS_TEST_CHILD";

/// This program, which another machine's can only start behind the emulator that cargo was told of.
fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    let variable = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
    let runner = std::env::var(variable).unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(emulator) = words.next() else { return Command::new(program) };
    let mut command = Command::new(emulator);
    command.args(words).arg(program);
    command
}

/// What building a backend with `STELLATE_CPU_ISA=value` panics with: its name or the error, in brackets.
fn outcome(value: &str) -> String {
    let output = this_program()
        .args(["--exact", "the_variable_forces_the_instruction_set", "--nocapture"])
        .env(ISA_VARIABLE, value)
        .env(CHILD_VARIABLE, "1")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_variable_forces_the_instruction_set() {
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        match Cpu::new(&CpuOptions { threads: 1, ..CpuOptions::default() }) {
            Ok(cpu) => panic!("[{}]", cpu.name()),
            Err(error) => panic!("[{error}]"),
        }
    }
    let available = Isa::available();
    for isa in Isa::ALL {
        let said = outcome(&isa.to_string());
        let wanted =
            if available.contains(&isa) { format!("[cpu {isa}, 1 thread]") } else { format!("no {isa}") };
        assert!(said.contains(&wanted), "{said}");
    }
    let best = available.iter().find(|isa| !isa.rounds_activations()).unwrap();
    assert!(outcome("").contains(&format!("[cpu {best}, ")));
    assert!(outcome("avx9").contains("use one of amx, avx512bf16, avx512, avx2, neon, portable"));
}

#[test]
fn only_encoding_may_round_activations_unless_it_is_asked_for() {
    assert!(!Isa::preferred().rounds_activations());
    let options = CpuOptions { threads: 1, ..CpuOptions::default() };
    let cpu = Cpu::with_isas(&options, Isa::Portable, Isa::preferred_for_encoding()).unwrap();
    assert!(cpu.encoding().name().starts_with(&format!("cpu {},", Isa::preferred_for_encoding())));
    assert_eq!(cpu.encoding().encoding().name(), cpu.encoding().name());
    let same = Cpu::with_isa(&options, Isa::Portable).unwrap();
    assert_eq!(same.encoding().name(), "cpu portable, 1 thread");
}
