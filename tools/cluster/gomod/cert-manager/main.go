// cert-manager's controllers for certificates that are self-signed or signed by an authority in a
// Secret, and its cainjector for validating webhooks. Its own programs are modules inside of its
// repository, which nobody can require; and they link the SDKs of four clouds for ACME.
package main

import (
	"flag"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/runtime"
	clientgo "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	certmanager "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/scheme"
	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/cainjector"
	"github.com/cert-manager/cert-manager/pkg/util/feature"

	// Each makes itself known.
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

// As cert-manager's own programs have them.
const (
	workers          = 5
	callsEachSecond  = 20
	callsInAnInstant = 50
)

func main() {
	// controller-runtime has a flag of this name.
	kubeconfig := flag.Lookup("kubeconfig")
	flag.Func("feature-gates", "as A=true,B=false", feature.DefaultMutableFeatureGate.Set)
	flag.Parse()
	ctrl.SetLogger(klog.Background())
	if err := run(kubeconfig.Value.String()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig string) error {
	ctx := klog.NewContext(ctrl.SetupSignalHandler(), klog.Background())
	injector, err := newInjector()
	if err != nil {
		return fmt.Errorf("cainjector: %w", err)
	}
	only := map[string]bool{cainjector.ValidatingWebhookConfigurationName: true}
	options := cainjector.SetupOptions{
		EnableCertificatesDataSource: true,
		EnabledReconcilersFor:        only,
	}
	if err := cainjector.RegisterAllInjectors(ctx, injector, options); err != nil {
		return fmt.Errorf("cainjector: %w", err)
	}
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         kubeconfig,
		KubernetesAPIQPS:   callsEachSecond,
		KubernetesAPIBurst: callsInAnInstant,
	})
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	ended := make(chan error)
	started := 1
	for name, construct := range controller.Known() {
		one, err := construct(factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		started++
		go func() { ended <- one.Run(workers, ctx) }()
	}
	go func() { ended <- injector.Start(ctx) }()
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	for range started {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

func newInjector() (manager.Manager, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgo.AddToScheme, certmanager.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Scheme:  scheme,
		Metrics: server.Options{BindAddress: "0"},
	})
}
