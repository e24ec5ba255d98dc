//! Images: what `NAME:VERSION` means. The operator's are for everybody, an account's own for itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use concertina_api::link::{Artifact, ImageParts};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::Control;
use crate::http::page::{Page, PageQuery};
use crate::http::{Body, Caller, Query};
use crate::ids::now_text;
use crate::model::{Image, PUBLIC, Scope};
use crate::problem::{Answer, Problem, ProblemDocument};

/// Longest appended kernel command line, in bytes.
const APPEND_MAX: usize = 1024;

/// A file that hosts fetch and check.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArtifactDto {
    /// `https://` or `http://`; for the operator's images also `file:///`, a file of each host.
    #[schema(max_length = 2048)]
    url: String,
    /// SHA-256 of its content, 64 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
    /// Its length in bytes.
    #[schema(minimum = 1)]
    size_bytes: u64,
}

/// What an instance boots from.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PartsDto {
    /// A raw disk of a distribution; each instance has a copy.
    Disk {
        /// The disk.
        disk: ArtifactDto,
    },
    /// A kernel and an initial ram file system.
    Kernel {
        /// bzImage or ELF vmlinux.
        kernel: ArtifactDto,
        /// Initial ram file system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<ArtifactDto>,
        /// Appended to the kernel command line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        append: Option<String>,
    },
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageView {
    /// Its name.
    name: String,
    /// Its version.
    version: String,
    /// Every account may use it.
    public: bool,
    /// What it consists of.
    parts: PartsDto,
    /// When it was registered.
    created: String,
}

/// An image to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Its name: 1 to 63 of a-z, 0-9 and '-'.
    #[schema(pattern = "^[a-z0-9][a-z0-9-]{0,62}$")]
    name: String,
    /// Its version: 1 to 63 of a-z, 0-9, '-', '.' and '_'.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$")]
    version: String,
    /// What it consists of.
    parts: PartsDto,
}

impl From<Artifact> for ArtifactDto {
    fn from(artifact: Artifact) -> Self {
        Self {
            url: artifact.url,
            sha256: artifact.sha256,
            size_bytes: artifact.size_bytes,
        }
    }
}

fn view(image: Image) -> ImageView {
    let parts = match image.parts {
        ImageParts::Disk { disk } => PartsDto::Disk { disk: disk.into() },
        ImageParts::Kernel {
            kernel,
            initrd,
            append,
        } => PartsDto::Kernel {
            kernel: kernel.into(),
            initrd: initrd.map(Into::into),
            append,
        },
    };
    ImageView {
        public: image.owner == PUBLIC,
        name: image.name,
        version: image.version,
        parts,
        created: image.created,
    }
}

fn check_artifact(field: &str, artifact: ArtifactDto, is_operator: bool) -> Answer<Artifact> {
    let url = &artifact.url;
    let has_scheme = ["http://", "https://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
        || (is_operator && url.starts_with("file:///"));
    if !has_scheme || url.len() > 2048 || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        let allowed = "an https:// or http:// address; file:/// for the operator's images";
        return Err(Problem::invalid(&format!("{field}.url"), url, allowed).into());
    }
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if artifact.sha256.len() != 64 || !artifact.sha256.bytes().all(is_hex) {
        let allowed = "64 hexadecimal digits in lower case";
        return Err(Problem::invalid(&format!("{field}.sha256"), &artifact.sha256, allowed).into());
    }
    if artifact.size_bytes == 0 {
        return Err(Problem::invalid(&format!("{field}.size_bytes"), 0, "at least 1").into());
    }
    Ok(Artifact {
        url: artifact.url,
        sha256: artifact.sha256,
        size_bytes: artifact.size_bytes,
    })
}

fn check_parts(parts: PartsDto, is_operator: bool) -> Answer<ImageParts> {
    Ok(match parts {
        PartsDto::Disk { disk } => ImageParts::Disk {
            disk: check_artifact("disk", disk, is_operator)?,
        },
        PartsDto::Kernel {
            kernel,
            initrd,
            append,
        } => {
            let is_good =
                |text: &String| text.len() <= APPEND_MAX && !text.chars().any(char::is_control);
            if let Some(text) = append.as_ref().filter(|text| !is_good(text)) {
                let allowed = "at most 1024 bytes without control characters";
                return Err(Problem::invalid("append", text, allowed).into());
            }
            ImageParts::Kernel {
                kernel: check_artifact("kernel", kernel, is_operator)?,
                initrd: initrd
                    .map(|initrd| check_artifact("initrd", initrd, is_operator))
                    .transpose()?,
                append,
            }
        }
    })
}

/// Whether a text may be a version.
fn is_version(text: &str) -> bool {
    let is_good = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_')
    };
    let begins = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    (1..=63).contains(&text.len()) && text.bytes().all(is_good) && begins
}

fn owner(caller: &Caller) -> &str {
    if caller.is_operator() {
        PUBLIC
    } else {
        &caller.account.id
    }
}

/// Where images of a name and version may be that an account sees: its own come first.
pub fn places(account: &str, name: &str, version: &str) -> Option<[String; 2]> {
    let is_good = super::accounts::check_name("image", name).is_ok() && is_version(version);
    let place = |owner: &str| format!("image/{owner}/{name}/{version}");
    is_good.then(|| [place(account), place(PUBLIC)])
}

/// Registers a version of an image. The same again is no error; another one under its name is.
#[utoipa::path(post, path = "/v1/images", tag = "images", security(("key" = [])),
    request_body = NewImage, responses(
    (status = 201, body = ImageView),
    (status = 200, description = "It was registered already", body = ImageView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn register(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Body { value: wanted, .. }: Body<NewImage>,
) -> Answer<(StatusCode, Json<ImageView>)> {
    caller.require(Scope::Admin)?;
    super::accounts::check_name("name", &wanted.name)?;
    if !is_version(&wanted.version) {
        let allowed = "1 to 63 of a-z, 0-9, '-', '.' and '_'";
        return Err(Problem::invalid("version", &wanted.version, allowed).into());
    }
    let image = Image {
        owner: owner(&caller).to_owned(),
        parts: check_parts(wanted.parts, caller.is_operator())?,
        name: wanted.name,
        version: wanted.version,
        created: now_text(),
    };
    let key = format!("image/{}/{}/{}", image.owner, image.name, image.version);
    let mut draft = control.draft();
    if let Some(old) = draft.read::<Image>(key.clone()).await? {
        if old.parts == image.parts {
            return Ok((StatusCode::OK, Json(view(old))));
        }
        let detail = format!(
            "Image '{}:{}' is registered with other parts: a version is never changed, use another",
            image.name, image.version
        );
        return Err(Problem::conflict("image_exists", detail).into());
    }
    draft.write(key, &image)?;
    caller.audit(
        &mut draft,
        "image.register",
        &format!("{}:{}", image.name, image.version),
    )?;
    draft.commit().await?;
    Ok((StatusCode::CREATED, Json(view(image))))
}

/// Which images.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ImageQuery {
    /// Only the account's own, or only public ones; absent: public ones.
    #[serde(default)]
    own: Option<bool>,
    /// Most things on the page.
    #[serde(default)]
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[serde(default)]
    cursor: Option<String>,
}

/// Lists images.
#[utoipa::path(get, path = "/v1/images", tag = "images", security(("key" = [])),
    params(ImageQuery), responses(
    (status = 200, body = Page<ImageView>),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Query(query): Query<ImageQuery>,
) -> Answer<Json<Page<ImageView>>> {
    caller.require(Scope::Read)?;
    let owner = if query.own.unwrap_or(false) {
        owner(&caller)
    } else {
        PUBLIC
    };
    let page = PageQuery {
        limit: query.limit,
        cursor: query.cursor,
    };
    let (entries, next_cursor) = page
        .list(control.registry.as_ref(), &format!("image/{owner}/"))
        .await?;
    let mut items = Vec::new();
    for entry in entries {
        items.push(view(entry.read()?));
    }
    Ok(Json(Page { items, next_cursor }))
}

/// The image of a name and version that an account sees.
///
/// # Errors
/// There is none.
pub async fn find(control: &Control, account: &str, name: &str, version: &str) -> Answer<Image> {
    let missing = || Problem::not_found("image", &format!("{name}:{version}"));
    let places = places(account, name, version).ok_or_else(missing)?;
    let found = control
        .registry
        .get_many(&places)
        .await?
        .into_iter()
        .flatten()
        .next();
    Ok(found.ok_or_else(missing)?.read()?)
}

/// Shows an image.
#[utoipa::path(get, path = "/v1/images/{name}/{version}", tag = "images", security(("key" = [])),
    params(("name" = String, Path), ("version" = String, Path)), responses(
    (status = 200, body = ImageView),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Answer<Json<ImageView>> {
    caller.require(Scope::Read)?;
    let image = find(&control, &caller.account.id, &name, &version).await?;
    Ok(Json(view(image)))
}

/// Removes an image of one's own. Instances that were launched from it stay.
#[utoipa::path(delete, path = "/v1/images/{name}/{version}", tag = "images", security(("key" = [])),
    params(("name" = String, Path), ("version" = String, Path)), responses(
    (status = 204, description = "It is removed"),
    (status = "4XX", body = ProblemDocument, content_type = "application/problem+json"),
))]
pub async fn remove(
    State(control): State<Arc<Control>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Answer<StatusCode> {
    caller.require(Scope::Admin)?;
    let full = format!("{name}:{version}");
    let missing = || Problem::not_found("image", &full);
    places(owner(&caller), &name, &version).ok_or_else(missing)?;
    let key = format!("image/{}/{name}/{version}", owner(&caller));
    let mut draft = control.draft();
    draft
        .read::<Image>(key.clone())
        .await?
        .ok_or_else(missing)?;
    draft.remove(key);
    caller.audit(&mut draft, "image.remove", &full)?;
    draft.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
