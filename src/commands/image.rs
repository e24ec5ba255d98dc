//! `concertina image`
/// Arguments of `image`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n concertina image")]
pub struct Args {}
/// x
pub fn run(_args: &Args) -> anyhow::Result<i32> {
    Ok(0)
}
