// Command k6 is k6 with one module more, which its own release does not have: what a keepstep client needs that k6's
// scripts cannot do.
package main

import (
	"go.k6.io/k6/cmd"

	_ "keepstep/bench/k6/keepstep"
)

func main() {
	cmd.Execute()
}
