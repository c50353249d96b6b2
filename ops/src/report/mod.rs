//! What measurements need and figures look like: memory readings, facts of the machine, fits, tables and plots. What is
//! measured is in `commands/bench`.

pub(crate) mod fit;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod plot;
pub(crate) mod stores;
pub(crate) mod table;
