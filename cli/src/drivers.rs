//! What of a GPU's drivers lies on this machine, for a person whose device does not start: what is missing, and what brings it.
//! Files are looked for and nothing is loaded, so that a broken driver can't take the asking program down.

use std::path::{Path, PathBuf};

/// Where a machine keeps what programs load.
pub struct Places {
    pub libraries: Vec<PathBuf>,
    pub cuda: PathBuf,
    pub vulkan: Vec<PathBuf>,
}

impl Places {
    /// This machine's: the loader's usual folders, and those that the environment names.
    pub fn here() -> Places {
        let cuda = std::env::var_os("CUDA_PATH").map_or_else(|| PathBuf::from("/usr/local/cuda"), PathBuf::from);
        let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let arch = std::env::consts::ARCH;
        let usual =
            [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into(), "/usr/lib/wsl/lib".into()];
        let libraries = std::env::split_paths(&named)
            .filter(|path| !path.as_os_str().is_empty())
            .chain(usual.map(PathBuf::from))
            .chain([cuda.join("lib64"), cuda.join(format!("targets/{arch}-linux/lib"))])
            .collect();
        let vulkan = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];
        Places { libraries, cuda, vulkan: vulkan.map(PathBuf::from).into() }
    }

    /// Why a device may not start, the first thing first; empty where nothing is seen to be missing, and where places are
    /// others than these.
    pub fn missing(&self, device: &str) -> Vec<String> {
        if !cfg!(target_os = "linux") {
            return Vec::new();
        }
        let has = |name: &str| self.libraries.iter().any(|folder| begins(folder, name));
        let mut missing = Vec::new();
        match device {
            "cuda" => {
                if !has("libcuda.so.1") {
                    missing.push(
                        "libcuda.so.1 is not here: install NVIDIA's driver (a container wants --gpus all)".to_owned(),
                    );
                }
                if !has("libnvrtc.so") {
                    missing.push(
                        "libnvrtc.so is not here: install the CUDA toolkit's nvrtc package, or name its folder in \
                         LD_LIBRARY_PATH"
                            .to_owned(),
                    );
                }
                let headers = self.cuda.join("include");
                if !headers.join("cuda_runtime.h").exists() {
                    missing.push(format!(
                        "no CUDA headers in {}: install the toolkit's cudart-dev package, or set CUDA_PATH",
                        headers.display()
                    ));
                }
            }
            "wgpu" => {
                if !has("libvulkan.so.1") {
                    missing
                        .push("libvulkan.so.1 is not here: install the Vulkan loader (Debian: libvulkan1)".to_owned());
                }
                if !self.vulkan.iter().any(|folder| begins(folder, "")) {
                    missing.push(
                        "no Vulkan driver is here: install the GPU's, or a software renderer (Debian: \
                         mesa-vulkan-drivers)"
                            .to_owned(),
                    );
                }
            }
            _ => {}
        }
        missing
    }
}

/// Whether a file in the folder has such a name, whatever follows it.
fn begins(folder: &Path, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(name))
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing_and_nothing_once_it_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let places = Places { libraries: vec![at("lib")], cuda: at("cuda"), vulkan: vec![at("icd.d")] };
        assert_eq!(places.missing("cuda").len(), 3);
        assert_eq!(places.missing("wgpu").len(), 2);
        assert!(places.missing("cpu").is_empty());
        for file in ["lib/libcuda.so.1", "lib/libnvrtc.so.13", "cuda/include/cuda_runtime.h", "icd.d/lvp.json"] {
            std::fs::create_dir_all(at(file).parent().expect("a folder")).expect("made");
            std::fs::write(at(file), "").expect("written");
        }
        assert!(places.missing("cuda").is_empty());
        assert_eq!(
            places.missing("wgpu"),
            ["libvulkan.so.1 is not here: install the Vulkan loader (Debian: libvulkan1)"]
        );
    }
}
