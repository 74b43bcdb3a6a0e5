//! Says what went wrong with a command.

use clap::CommandFactory;

use super::args::Cli;
use super::error::{Told, Usage, sentence};
use super::{out, output};
use crate::control::ErrorBody;

/// If that has not been said.
pub fn tell(error: &anyhow::Error, json: bool) {
    if error.is::<Told>() {
        return;
    }
    let text = sentence(error);
    if json {
        out::json_line(&serde_json::json!(ErrorBody { error: text.clone() }));
    }
    if error.is::<Usage>() {
        // As clap says it of a single word.
        out::to_stderr(
            &Cli::command().error(clap::error::ErrorKind::ValueValidation, text).render().to_string(),
        );
    } else {
        output::complain(&text);
    }
}
