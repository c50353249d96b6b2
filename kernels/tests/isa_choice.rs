//! `STELLATE_CPU_ISA` is read once when a backend is built. Each value is tried in a process of its own, because
//! the environment belongs to the whole process.

use std::process::Command;

use stellate_kernels::cpu::ISA_VARIABLE;
use stellate_kernels::{Cpu, CpuOptions, Isa};

const CHILD_VARIABLE: &str = "STELLATE_KERNELS_TEST_CHILD";

/// What building a backend with `STELLATE_CPU_ISA=value` panics with: its name or the error, in brackets.
fn outcome(value: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
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
            Ok(cpu) => panic!("[{}]", stellate_kernels::Backend::name(&cpu)),
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
    assert!(outcome("").contains(&format!("[cpu {best}, 1 thread]")));
    assert!(outcome("avx9").contains("use one of amx, avx512bf16, avx512, avx2, portable"));
}
