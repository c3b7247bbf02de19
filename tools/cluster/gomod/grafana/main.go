// Reads dashboards by Grafana's own types and says what these do not know: fields without a place,
// values of the wrong type, required fields that lack. One line for each; none when all is well.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	// Those that our dashboards use; all forty would take minutes to compile.
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	wrong := false
	for _, file := range os.Args[1:] {
		if err := check(file); err != nil {
			wrong = true
			for _, line := range strings.Split(strings.TrimSpace(err.Error()), "\n") {
				fmt.Printf("%s: %s\n", file, line)
			}
		}
	}
	if wrong {
		os.Exit(1)
	}
}

func check(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var read dashboard.Dashboard
	if err := read.UnmarshalJSONStrict(text); err != nil {
		return err
	}
	var raw struct{ Panels []json.RawMessage }
	if err := json.Unmarshal(text, &raw); err != nil {
		return err
	}
	var found []error
	for number, panel := range raw.Panels {
		if err := checkPanel(panel); err != nil {
			found = append(found, fmt.Errorf("panels[%d]: %w", number, err))
		}
	}
	return errors.Join(append(found, read.Validate())...)
}

// What the strict reading of a dashboard lets pass: options and queries of kinds that are not
// registered, and all but `custom` in a panel's field configuration.
func checkPanel(text []byte) error {
	var panel struct {
		Type        string
		FieldConfig json.RawMessage
		Targets     []struct{ Datasource struct{ Type string } }
	}
	if err := json.Unmarshal(text, &panel); err != nil {
		return err
	}
	if _, known := cog.ConfigForPanelcfgVariant(panel.Type); !known && panel.Type != "row" {
		return fmt.Errorf("type %q is not registered: add it to this program", panel.Type)
	}
	for _, target := range panel.Targets {
		if kind := target.Datasource.Type; kind != "prometheus" {
			return fmt.Errorf("data source %q is not registered: add it to this program", kind)
		}
	}
	var configured dashboard.FieldConfigSource
	if err := configured.UnmarshalJSONStrict(panel.FieldConfig); err != nil {
		return fmt.Errorf("fieldConfig: %w", err)
	}
	return nil
}
