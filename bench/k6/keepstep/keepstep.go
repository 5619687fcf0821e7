// Package keepstep is the module k6/x/keepstep: Ed25519 signatures, which k6 has not got, and server-sent events, which
// its HTTP module would only hand over once they had ended.
package keepstep

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"

	"go.k6.io/k6/js/modules"
)

func init() {
	modules.Register("k6/x/keepstep", new(RootModule))
}

// RootModule makes an instance of the module for each virtual user.
type RootModule struct{}

// Module is one virtual user's instance.
type Module struct {
	vu modules.VU
}

// NewModuleInstance implements modules.Module.
func (*RootModule) NewModuleInstance(vu modules.VU) modules.Instance {
	return &Module{vu: vu}
}

// Exports implements modules.Instance.
func (module *Module) Exports() modules.Exports {
	return modules.Exports{Named: map[string]any{"signChallenge": signChallenge, "follow": module.follow}}
}

// Device is who signs.
type Device struct {
	UserID string `js:"user_id"`
	// DeviceID is a UUID.
	DeviceID string `js:"device_id"`
	// Secret is the Ed25519 seed, 64 hexadecimal digits.
	Secret string `js:"secret"`
	// ServerKey is the one that the device has pinned.
	ServerKey string `js:"server_key"`
}

// Proof is what the device posts for a token.
type Proof struct {
	DeviceKey string `js:"device_key"`
	Signature string `js:"signature"`
}

// signChallenge signs a challenge as docs/reference/protocol.md has it in section 2, "Over REST". Origin is where the
// device itself reaches REST; nonce is as the server sent it.
func signChallenge(device Device, origin, nonce, purpose string) (Proof, error) {
	seed, err := hex.DecodeString(device.Secret)
	if err != nil || len(seed) != ed25519.SeedSize {
		return Proof{}, fmt.Errorf("the secret is not %d bytes in hexadecimal", ed25519.SeedSize)
	}
	statement, err := statement(device, origin, nonce, purpose)
	if err != nil {
		return Proof{}, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	public, _ := key.Public().(ed25519.PublicKey)
	return Proof{
		DeviceKey: hex.EncodeToString(public),
		Signature: base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, statement)),
	}, nil
}
