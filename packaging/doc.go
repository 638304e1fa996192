// Package packaging is what turns the programs into packages of a distribution:
// build.sh lays out what nfpm-*.yaml list, scripts/ run on the host when a package
// comes, is upgraded or goes. There is no Go in it but its tests, which build
// everything twice and look at what came out: `make packages-check` runs them.
package packaging
