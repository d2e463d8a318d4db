"""Hand-written sentences as radiologists write them, none of which the generator can produce, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from VelvetMedLib.reports import parse_sentence

P, A, U, N = "present", "absent", "uncertain", "not_assessed"
RUL, RML, RLL = "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"
LUL, LLL = "lung_upper_lobe_left", "lung_lower_lobe_left"

SENTENCES: list[tuple[str, dict[str, Any]]] = [
    (
        "Stable 8 mm solid nodule in the right upper lobe, unchanged from the prior study.",
        {"lung_nodule": (P, {"side": "right", "site": RUL, "size_mm": 8.0})},
    ),
    ("1.4 x 1.1 cm spiculated nodule within the lingula.", {"lung_nodule": (P, {"side": "left", "site": LUL, "size_mm": 14.0})}),
    (
        "There are three calcified granulomatous nodules bilaterally, the largest measuring 5 mm.",
        {"lung_nodule": (P, {"side": "both", "size_mm": 5.0, "count": 3})},
    ),
    (
        "Large mass in the left lower lobe measuring approximately 5,2 cm with central necrosis.",
        {"lung_mass": (P, {"side": "left", "site": LLL, "size_mm": 52.0})},
    ),
    ("No suspicious pulmonary nodules or masses.", {"lung_nodule": (A, {}), "lung_mass": (A, {})}),
    ("No pleural effusion or pneumothorax.", {"pleural_effusion": (A, {}), "pneumothorax": (A, {})}),
    (
        "Small bilateral pleural effusions, right greater than left, with adjacent compressive atelectasis.",
        {"pleural_effusion": (P, {"side": "both", "severity": "mild"}), "atelectasis": (P, {})},
    ),
    (
        "Moderate right-sided pleural effusion; no effusion on the left.",
        {"pleural_effusion": (P, {"side": "right", "severity": "moderate"})},
    ),
    (
        "There is a large left pneumothorax with mediastinal shift to the right.",
        {"pneumothorax": (P, {"side": "left", "severity": "severe"})},
    ),
    ("Tiny apical pneumothorax cannot be entirely excluded.", {"pneumothorax": (U, {})}),
    (
        "The lungs are clear without focal consolidation.",
        {"consolidation": (A, {}), "lung_nodule": (A, {}), "ground_glass_opacity": (A, {}), "lung_mass": (A, {}), "atelectasis": (A, {})},
    ),
    ("Patchy ground-glass opacities in both lungs, likely infectious.", {"ground_glass_opacity": (P, {"side": "both"})}),
    ("Consolidation in the right lower lobe suspicious for pneumonia.", {"consolidation": (P, {"side": "right", "site": RLL})}),
    ("Dense airspace opacity in the middle lobe.", {"consolidation": (P, {"side": "right", "site": RML})}),
    ("Severe centrilobular emphysema with upper lobe predominance.", {"emphysema": (P, {"severity": "severe"})}),
    ("Subcutaneous emphysema in the left chest wall.", {}),
    ("Bibasilar atelectasis.", {"atelectasis": (P, {"side": "both"})}),
    ("Minor linear atelectasis at the left lung base.", {"atelectasis": (P, {"side": "left", "site": LLL, "severity": "mild"})}),
    ("The heart is mildly enlarged.", {"cardiomegaly": (P, {"severity": "mild"})}),
    ("Heart is not enlarged and there is no pericardial effusion.", {"cardiomegaly": (A, {}), "pericardial_effusion": (A, {})}),
    ("Cardiomegaly with a cardiothoracic ratio of 0.58.", {"cardiomegaly": (P, {"value": 0.58})}),
    ("Heart size at the upper limits of normal.", {"cardiomegaly": (U, {})}),
    ("Small to moderate pericardial effusion.", {"pericardial_effusion": (P, {"severity": "mild"})}),
    ("Extensive calcification of the coronary arteries.", {"coronary_calcification": (P, {"severity": "severe"})}),
    ("Heavy LAD calcification.", {"coronary_calcification": (P, {"severity": "severe"})}),
    ("No coronary calcium.", {"coronary_calcification": (A, {})}),
    (
        "Fusiform aneurysm of the ascending aorta measuring up to 4.8 cm.",
        {"aortic_dilatation": (P, {"site": "ascending_aorta", "size_mm": 48.0})},
    ),
    ("The thoracic aorta is normal in caliber.", {"aortic_dilatation": (A, {})}),
    ("Infrarenal abdominal aortic aneurysm, 5.5 cm in diameter.", {"aortic_dilatation": (P, {"site": "abdominal_aorta", "size_mm": 55.0})}),
    ("No aortic aneurysm or dissection.", {"aortic_dilatation": (A, {})}),
    ("Ectatic ascending aorta, 41 mm.", {"aortic_dilatation": (P, {"site": "ascending_aorta", "size_mm": 41.0})}),
    ("Enlarged subcarinal lymph node with a short axis of 16 mm.", {"lymphadenopathy": (P, {"size_mm": 16.0})}),
    ("No mediastinal or hilar lymphadenopathy.", {"lymphadenopathy": (A, {})}),
    ("No pathologically enlarged mediastinal, hilar or axillary lymph nodes.", {"lymphadenopathy": (A, {})}),
    ("Mediastinal nodes are not enlarged by size criteria.", {"lymphadenopathy": (A, {})}),
    ("Small sliding-type hiatal hernia.", {"hiatal_hernia": (P, {"severity": "mild"})}),
    ("Large hiatus hernia containing most of the stomach.", {"hiatal_hernia": (P, {"severity": "severe"})}),
    ("Hypodense lesion in segment VII of the liver, 2.3 cm, too small to characterise.", {"liver_lesion": (P, {"size_mm": 23.0})}),
    ("Multiple liver metastases, up to 4 cm.", {"liver_lesion": (P, {"size_mm": 40.0})}),
    ("No focal hepatic lesion.", {"liver_lesion": (A, {})}),
    ("The liver is normal in size and contour without focal lesion.", {"liver_lesion": (A, {})}),
    ("Diffuse fatty infiltration of the liver.", {"hepatic_steatosis": (P, {})}),
    ("Mild hepatic steatosis.", {"hepatic_steatosis": (P, {"severity": "mild"})}),
    ("Simple cyst in the upper pole of the left kidney, 3.1 cm.", {"renal_cyst": (P, {"side": "left", "size_mm": 31.0})}),
    ("Bilateral renal cysts, the largest on the right measuring 42 mm.", {"renal_cyst": (P, {"side": "both", "size_mm": 42.0})}),
    ("Two nonobstructing calculi in the right kidney, up to 6 mm.", {"kidney_stone": (P, {"side": "right", "size_mm": 6.0, "count": 2})}),
    ("No renal calculi or hydronephrosis.", {"kidney_stone": (A, {}), "hydronephrosis": (A, {})}),
    (
        "Moderate left hydronephrosis secondary to a 7 mm ureteral stone.",
        {"hydronephrosis": (P, {"side": "left", "severity": "moderate"}), "kidney_stone": (P, {"size_mm": 7.0})},
    ),
    ("Gallstones without cholecystitis.", {}),
    ("The kidneys enhance symmetrically without hydronephrosis.", {"hydronephrosis": (A, {})}),
    ("Splenomegaly, 15.2 cm in craniocaudal length.", {"splenomegaly": (P, {"value": 152.0})}),
    ("Spleen is unremarkable.", {"splenomegaly": (A, {})}),
    ("The spleen is not enlarged.", {"splenomegaly": (A, {})}),
    ("Chronic wedge compression fracture of T12 with 40% height loss.", {"vertebral_compression": (P, {"site": "T12", "value": 0.4})}),
    ("Compression deformities at L1 and L3.", {"vertebral_compression": (P, {"site": "L1"})}),
    ("No acute osseous abnormality; vertebral body heights are preserved.", {"vertebral_compression": (A, {})}),
    ("Possible early compression fracture of L2.", {"vertebral_compression": (U, {"site": "L2"})}),
    ("No change in the 12 mm nodule in the left upper lobe.", {"lung_nodule": (P, {"size_mm": 12.0, "site": LUL, "side": "left"})}),
    (
        "The upper abdomen is not included in the scan.",
        {
            "liver_lesion": (N, {}),
            "splenomegaly": (N, {}),
            "renal_cyst": (N, {}),
            "hepatic_steatosis": (N, {}),
            "kidney_stone": (N, {}),
            "hydronephrosis": (N, {}),
        },
    ),
    ("The spleen is incompletely imaged.", {"splenomegaly": (N, {})}),
    ("Evaluation for kidney stones is limited by contrast, and hydronephrosis cannot be assessed.", {"hydronephrosis": (N, {})}),
    ("5 mm slice thickness.", {}),
    (
        "RUL nodule 9mm, LLL atelectasis.",
        {"lung_nodule": (P, {"site": RUL, "size_mm": 9.0}), "atelectasis": (P, {"site": LLL, "side": "left"})},
    ),
    ("Nodule in the right middle lobe (previously 8 mm, now 11 mm).", {"lung_nodule": (P, {"site": RML, "size_mm": 11.0})}),
    ("Thyroid nodule on the left.", {}),
    (
        "Findings may represent consolidation in the left lower lobe, although atelectasis is also possible.",
        {"consolidation": (U, {"site": LLL}), "atelectasis": (U, {})},
    ),
    (
        "There is no evidence of pneumonia, but a small left pleural effusion is seen.",
        {"consolidation": (A, {}), "pleural_effusion": (P, {"side": "left", "severity": "mild"})},
    ),
    ("Pleural effusions are absent.", {"pleural_effusion": (A, {})}),
    ("Pneumothorax has resolved.", {"pneumothorax": (A, {})}),
    ("Questionable trace left effusion.", {"pleural_effusion": (U, {"side": "left"})}),
    ("Neither pleural effusion nor pneumothorax is identified.", {"pleural_effusion": (A, {}), "pneumothorax": (A, {})}),
    (
        "Lungs: No focal consolidation, pleural effusion, or pneumothorax.",
        {"consolidation": (A, {}), "pleural_effusion": (A, {}), "pneumothorax": (A, {})},
    ),
    ("A 6-mm noncalcified nodule is present in the lingula (series 4, image 121).", {"lung_nodule": (P, {"size_mm": 6.0, "count": None})}),
    ("The previously described 9 mm right lower lobe nodule has resolved.", {"lung_nodule": (A, {})}),
    ("The ascending aorta measures 4.2 cm and is mildly dilated.", {"aortic_dilatation": (P, {"size_mm": 42.0, "severity": "mild"})}),
    ("The spleen measures 14 cm, mildly enlarged.", {"splenomegaly": (P, {"value": 140.0})}),
    ("Spleen, pancreas and adrenal glands are unremarkable.", {"splenomegaly": (A, {})}),
    ("Moderate coronary artery atherosclerotic calcifications.", {"coronary_calcification": (P, {"severity": "moderate"})}),
    ("Mild wedging of the T8 vertebral body, age indeterminate.", {"vertebral_compression": (P, {"site": "T8", "severity": "mild"})}),
    ("Mass-like consolidation in the right upper lobe, neoplasm not excluded.", {"consolidation": (P, {"site": RUL})}),
    ("Cannot rule out early pneumonia in the right base.", {"consolidation": (U, {"site": RLL})}),
    ("Kidneys demonstrate no stones, masses or hydronephrosis.", {"kidney_stone": (A, {}), "hydronephrosis": (A, {})}),
    ("Atelectasis versus consolidation in the left lower lobe.", {"atelectasis": (U, {}), "consolidation": (U, {"site": LLL})}),
    ("No lung mass; 4 mm nodule in the lingula.", {"lung_mass": (A, {}), "lung_nodule": (P, {"site": LUL, "size_mm": 4.0})}),
    ("Status post right upper lobectomy.", {}),
    ("Normal.", {}),
    ("Degenerative changes of the spine.", {}),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES, ids=[t[:48] for t, _ in SENTENCES])
def test_a_real_sentence_is_understood(text: str, expected: dict[str, Any]) -> None:
    found = {m.name: m for m in parse_sentence(text)}
    for name, (state, attributes) in expected.items():
        assert name in found, f"{name} was not found in {sorted(found)}"
        assert found[name].state == state
        for attribute, value in attributes.items():
            assert getattr(found[name], attribute) == (pytest.approx(value) if isinstance(value, float) else value), attribute
    # Evaluation words may add an "absent" on organs called normal, never a finding of their own.
    extra = {name for name, m in found.items() if name not in expected and m.state in ("present", "uncertain")}
    assert not extra


def test_there_are_at_least_sixty_of_them() -> None:
    assert len(SENTENCES) >= 60
