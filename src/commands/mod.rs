//! One file per command; each has the same shape: `run(&Args) -> anyhow::Result<()>`.

pub(crate) mod convert;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod run;
