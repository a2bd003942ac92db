//! Kernel modules out of an unpacked kernel package, with those that they need.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::ctx::Ctx;

/// A module, ready to be inserted.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules of these names below `kernel`, each after those that it needs, without
/// those that are built into the kernel: which ones are differs between series.
pub(super) fn find(ctx: &Ctx, kernel: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(&kernel.join("lib/modules"), &mut files)?;
    let builtin = files.get("modules.builtin");
    let builtin = builtin.context("the kernel package has no modules.builtin")?;
    let builtin = fs::read_to_string(builtin)?;
    let mut found = Vec::new();
    for name in names {
        if !is_builtin(&builtin, name) {
            add(ctx, &files, name, &mut found)?;
        }
    }
    Ok(found)
}

/// Among lines as `kernel/drivers/virtio/virtio_pci.ko`?
fn is_builtin(builtin: &str, name: &str) -> bool {
    let mut paths = builtin.lines().filter_map(|line| line.strip_suffix(".ko"));
    paths.any(|path| {
        path.rsplit('/')
            .next()
            .is_some_and(|file| file.replace('-', "_") == name)
    })
}

fn add(
    ctx: &Ctx,
    files: &BTreeMap<String, PathBuf>,
    name: &str,
    found: &mut Vec<Module>,
) -> Result<()> {
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.get(name);
    let file = file.with_context(|| format!("the kernel has no module {name}"))?;
    let content = read(ctx, file)?;
    for needed in depends(&content) {
        add(ctx, files, &needed, found)?;
    }
    found.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// All files below a directory: modules by the names that the kernel gives them.
fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("no {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        match file.split_once(".ko") {
            Some((name, _)) => files.insert(name.replace('-', "_"), path.clone()),
            None => files.insert(file.clone().into_owned(), path.clone()),
        };
    }
    Ok(())
}

/// Debian compresses the modules of newer kernels.
fn read(ctx: &Ctx, file: &Path) -> Result<Vec<u8>> {
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    let program = match &*extension {
        "ko" => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
        "xz" => "xz",
        "zst" => "zstd",
        _ => bail!("{} is compressed in an unknown way", file.display()),
    };
    let mut command = ctx.user(program);
    command.args(["--decompress", "--stdout"]).arg(file);
    let output = command.output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} fails on {}: {}", file.display(), said.trim());
    }
    Ok(output.stdout)
}

/// What a module says in its section `.modinfo`: strings that end with a zero.
fn depends(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = content[at + KEY.len()..].split(|byte| *byte == 0);
    let value = value.into_iter().next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::{depends, is_builtin};

    #[test]
    fn a_module_names_what_it_needs() {
        let content = b"ELF\0license=GPL\0depends=virtio_ring,net-failover\0name=x\0";
        assert_eq!(depends(content), ["virtio_ring", "net_failover"]);
        assert!(depends(b"\0depends=\0retpoline=Y\0").is_empty());
        assert!(depends(b"no module").is_empty());
    }

    #[test]
    fn what_is_built_in_is_told_by_its_file() {
        let builtin = "kernel/a/virtio-pci.ko\nkernel/b/loop.ko\n";
        assert!(is_builtin(builtin, "virtio_pci") && is_builtin(builtin, "loop"));
        assert!(!is_builtin(builtin, "virtio") && !is_builtin(builtin, "oop"));
    }
}
