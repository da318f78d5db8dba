//! Hidden commands: a program of this crate starts itself again with them.

use anyhow::Result;
use clap::Subcommand;
use tokio::runtime::Handle;

use crate::{paths::Paths, reaper, serve};

/// A hidden command.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Serve every route and public/
    #[command(name = serve::COMMAND, hide = true)]
    Serve {
        /// The port to listen on
        #[arg(long)]
        port: u16,
    },
    /// Stop the processes of an instance when its owner dies
    #[command(name = reaper::COMMAND, hide = true)]
    Reap {
        /// The instance's name
        instance: String,
    },
}

impl Internal {
    /// Runs the command.
    pub fn run(&self, runtime: &Handle, paths: &Paths) -> Result<()> {
        match self {
            Self::Serve { port } => serve::run(runtime, &paths.root, *port),
            Self::Reap { instance } => reaper::run(paths, instance),
        }
    }
}
