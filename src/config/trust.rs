//! Whether root may obey a file.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{error::Problem, plan::Plan};

/// Files of a configuration that root must not obey; none where we are not root.
pub fn untrusted_sources(plan: &Plan) -> Vec<Problem> {
    let problem = |problem| Problem { at: String::new(), problem };
    plan.sources.iter().filter_map(|file| untrusted(file)).map(problem).collect()
}

/// Why root must not obey `file`: somebody else could change it, or what leads to it. `None` where we are not root.
///
/// Looks at the file, every folder above it, and the same for whatever a symbolic link on the way names. A sticky folder
/// such as `/tmp` is no fault where what is taken from it belongs to root. A file that is not there is for others to
/// report.
pub fn untrusted(file: &Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let mut seen = 0;
    let absolute = std::path::absolute(file).ok()?;
    untrusted_way(&absolute, 0o022, &mut seen)
}

/// Why root must not write logs in `folder`. A group may write in it, or in one above: `/var/log` belongs to a group of
/// the system's on some distributions.
pub fn untrusted_for_logs(folder: &Path) -> Option<String> {
    let mut seen = 0;
    let absolute = std::path::absolute(folder).ok()?;
    untrusted_way(&absolute, 0o002, &mut seen)
}

/// `others`: the bits of a mode that let others change something.
fn untrusted_way(file: &Path, others: u32, seen: &mut u32) -> Option<String> {
    *seen += 1;
    // As many as the kernel follows.
    if *seen > 40 {
        return None;
    }
    let mut way: Vec<&Path> = file.ancestors().collect();
    way.reverse();
    for (position, part) in way.iter().enumerate() {
        let found = fs::symlink_metadata(part).ok()?;
        if found.is_symlink() {
            if found.uid() != 0 {
                return Some(refusal(part, "belongs to", found.uid()));
            }
            let target = fs::read_link(part).ok()?;
            let mut resolved: PathBuf = part.parent().unwrap_or(part).join(target);
            resolved.extend(way[position + 1..].last().and_then(|last| last.strip_prefix(part).ok()));
            return untrusted_way(&resolved, others, seen);
        }
        if found.uid() != 0 {
            return Some(refusal(part, "belongs to", found.uid()));
        }
        let others_may_write = found.mode() & others != 0;
        let sticky_folder = found.is_dir() && found.mode() & 0o1000 != 0;
        if others_may_write && !sticky_folder {
            return Some(format!(
                "{} can be written by others than root, who would then command root; `chmod go-w {}`",
                part.display(),
                part.display()
            ));
        }
    }
    None
}

fn refusal(part: &Path, why: &str, uid: u32) -> String {
    format!(
        "{} {why} the user {uid}, who would then command root; `chown root {}` (or start as that user)",
        part.display(),
        part.display()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// Needs root, as CI has.
    fn folder() -> Option<tempfile::TempDir> {
        rustix::process::geteuid().is_root().then(|| tempfile::tempdir().unwrap())
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_of_roots_in_folders_of_roots_is_obeyed() {
        let Some(folder) = folder() else { return };
        let file = folder.path().join("v.yml");
        fs::write(&file, "").unwrap();

        assert_eq!(untrusted(&file), None);
        assert_eq!(untrusted(&folder.path().join("absent")), None);
    }

    #[test]
    fn a_file_or_folder_that_others_can_change_is_not() {
        let Some(folder) = folder() else { return };
        let below = folder.path().join("below");
        let file = below.join("v.yml");
        fs::create_dir(&below).unwrap();
        fs::write(&file, "").unwrap();

        mode(&file, 0o664);
        assert!(untrusted(&file).unwrap().contains("chmod go-w"));
        mode(&file, 0o644);
        mode(&below, 0o777);
        assert!(untrusted(&file).unwrap().contains("below"));
        mode(&below, 0o1777);
        assert_eq!(untrusted(&file), None, "sticky, and the file is root's");
        chown(&file, Some(12345), None).unwrap();
        assert!(untrusted(&file).unwrap().contains("12345"));
    }

    #[test]
    fn a_group_may_write_where_logs_are() {
        let Some(folder) = folder() else { return };

        mode(folder.path(), 0o775);
        assert!(untrusted(folder.path()).is_some());
        assert_eq!(untrusted_for_logs(folder.path()), None);
        mode(folder.path(), 0o777);
        assert!(untrusted_for_logs(folder.path()).is_some());
    }

    #[test]
    fn what_a_link_leads_to_is_looked_at_and_who_owns_the_link() {
        let Some(folder) = folder() else { return };
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        fs::write(real.join("v.yml"), "").unwrap();
        symlink("real", &link).unwrap();
        assert_eq!(untrusted(&link.join("v.yml")), None);

        mode(&real, 0o777);
        assert!(untrusted(&link.join("v.yml")).is_some());
        mode(&real, 0o755);
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        assert!(untrusted(&link.join("v.yml")).is_some());
    }

    #[test]
    fn links_in_a_circle_end() {
        let Some(folder) = folder() else { return };
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();

        assert_eq!(untrusted(&folder.path().join("a")), None);
    }
}
