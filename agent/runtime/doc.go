// Package runtime keeps the engines that are installed on a node: it adds, lists,
// checks and removes them, and carries the Python side of warmd inside the binary.
//
// # A runtime is a folder
//
//	ROOT/NAME/
//	  runtime.json   the manifest; written last, so a folder without it is no runtime
//	  venv/          the engine and its interpreter (absent when an installed one was adopted)
//	  profile.json   the modules that a real load imports, recorded by the rehearsal
//	  cache/         every cache that the engine writes (vLLM, Hugging Face, Triton, Inductor)
//	  model/         the tiny generated model of the rehearsal
//	  scripts-HASH/  the Python side, unpacked; the hash is of its content
//
// # Invariants
//
//	List shows NAME       <=> ROOT/NAME/runtime.json exists, whole (it is renamed into place)
//	Manifest.ProfileKey   == ProfileKeyOf(versions, ImportEnv, plugins) at the moment of add
//	Manifest.ImportEnv    == the keys of Env that are read while the engine is imported
//
// A parked worker was forked from a process that had imported everything already,
// so an environment variable of ImportEnv cannot be changed for it any more: the
// profile key is what two runtimes must share to be exchangeable.
//
// # Reading order
//
// manifest.go, known.go (which versions install how), env.go (the explicit
// environment, a reason per line), add.go, check.go.
package runtime
