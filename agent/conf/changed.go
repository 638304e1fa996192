package conf

import (
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// LogReload says by key what a reload changed that is in effect, and what differs from
// the configuration that the process began with and is not: live tells them apart.
func LogReload(log *slog.Logger, began, before, now any, live func(key string) bool) {
	inEffect := slices.DeleteFunc(Changed(before, now), func(key string) bool { return !live(key) })
	log.Info("configuration read again", "changed", inEffect)
	if late := slices.DeleteFunc(Changed(began, now), live); len(late) > 0 {
		log.Warn("needs a restart", "keys", late)
	}
}

// Changed lists the keys whose values differ between two configurations of one type,
// tables as table.key, in the order of the struct. Fields without a key are left out;
// an empty list is the same as none.
func Changed(a, b any) []string {
	return changed("", reflect.Indirect(reflect.ValueOf(a)), reflect.Indirect(reflect.ValueOf(b)))
}

func changed(under string, a, b reflect.Value) (keys []string) {
	for i := range a.NumField() {
		key, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("toml"), ",")
		if key == "" || key == "-" {
			continue
		}
		x, y := a.Field(i), b.Field(i)
		switch {
		case x.Kind() == reflect.Struct:
			keys = append(keys, changed(under+key+".", x, y)...)
		case x.Kind() == reflect.Map && x.Type().Elem().Kind() == reflect.Struct:
			keys = append(keys, changedTables(under+key+".", x, y)...)
		case reflect.DeepEqual(x.Interface(), y.Interface()):
		case (x.Kind() == reflect.Map || x.Kind() == reflect.Slice) && x.Len() == 0 && y.Len() == 0:
		default:
			keys = append(keys, under+key)
		}
	}
	return keys
}

// changedTables compares tables by name; one that is missing has no values.
func changedTables(under string, a, b reflect.Value) (keys []string) {
	names := map[string]bool{}
	for _, m := range []reflect.Value{a, b} {
		for _, k := range m.MapKeys() {
			names[k.String()] = true
		}
	}
	none := reflect.Zero(a.Type().Elem())
	of := func(m reflect.Value, name string) reflect.Value {
		if v := m.MapIndex(reflect.ValueOf(name)); v.IsValid() {
			return v
		}
		return none
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		keys = append(keys, changed(under+name+".", of(a, name), of(b, name))...)
	}
	return keys
}
