// A CoreDNS with the plug-ins that a test cluster uses. The full list links the SDKs of three clouds
// and takes five minutes more to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order of a request's way through the plug-ins.
	dnsserver.Directives = []string{
		"reload", "health", "ready", "log", "errors", "cache", "loadbalance", "kubernetes", "template",
	}
	coremain.Run()
}
